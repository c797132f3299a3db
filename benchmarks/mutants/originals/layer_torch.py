# mypy: ignore-errors
"""Layer normalization over the last axis as a torch Module with a backward pass written by hand."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _LayerNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        var = (centred * centred).mean(-1, keepdim=True)
        std = torch.sqrt(var + eps)
        xhat = centred / std
        ctx.save_for_backward(xhat, std, weight)
        return weight * xhat + bias

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, std, weight = ctx.saved_tensors
        rows = tuple(range(dy.ndim - 1))
        dbias = dy.sum(rows)
        dweight = (dy * xhat).sum(rows)
        g = dy * weight
        mean_term = g.mean(-1, keepdim=True)
        var_term = xhat * (g * xhat).mean(-1, keepdim=True)
        dx = (g - mean_term - var_term) / std
        return dx, dweight, dbias, None


class LayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))

    def forward(self, x):
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"expected (*, {self.weight.numel()}), got {tuple(x.shape)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = _LayerNormalize.apply(wide, self.weight.to(wide.dtype), self.bias.to(wide.dtype), self.eps)
        return y.to(x.dtype)
