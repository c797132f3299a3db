# mypy: ignore-errors
"""RMS normalization over the last axis as a torch Module with a backward pass written by hand."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _RMSNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        mean_square = (x * x).mean(-1, keepdim=True)
        rms = torch.sqrt(mean_square + eps)
        xhat = x / rms
        ctx.save_for_backward(xhat, rms, weight)
        return weight * xhat

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, rms, weight = ctx.saved_tensors
        dweight = (dy * xhat).sum(tuple(range(dy.ndim - 1)))
        g = dy * weight
        dx = (g - xhat * (g * xhat).mean(-1, keepdim=True)) / rms
        return dx, dweight, None


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"expected (*, {self.weight.numel()}), got {tuple(x.shape)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = _RMSNormalize.apply(wide, self.weight.to(wide.dtype), self.eps)
        return y.to(x.dtype)
