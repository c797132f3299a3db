# mypy: ignore-errors
"""Group normalization as a torch Module with a backward pass written by hand."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _GroupNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        n, c = x.shape[:2]
        grouped = x.reshape(n, groups, -1)
        mean = grouped.mean(2, keepdim=True)
        centred = grouped - mean
        var = (centred * centred).mean(2, keepdim=True)
        std = torch.sqrt(var + eps)
        xhat = (centred / std).reshape(n, c, -1)
        ctx.save_for_backward(xhat, std, weight)
        ctx.groups = groups
        y = weight.reshape(1, c, 1) * xhat + bias.reshape(1, c, 1)
        return y.reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, std, weight = ctx.saved_tensors
        n, c, _ = xhat.shape
        flat = dy.reshape(n, c, -1)
        dbias = flat.sum((0, 2))
        dweight = (flat * xhat).sum((0, 2))
        g = (flat * weight.reshape(1, c, 1)).reshape(n, ctx.groups, -1)
        xhat = xhat.reshape(n, ctx.groups, -1)
        mean_term = g.mean(2, keepdim=True)
        var_term = xhat * (g * xhat).mean(2, keepdim=True)
        dx = (g - mean_term - var_term) / std
        return dx.reshape(dy.shape), dweight, dbias, None, None


class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"num_channels {num_channels} must be divisible by num_groups {num_groups}")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        if x.shape[1] != self.num_channels:
            raise ValueError(f"expected {self.num_channels} channels, got {x.shape[1]}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        y = _GroupNormalize.apply(wide, weight, bias, self.num_groups, self.eps)
        return y.to(x.dtype)
