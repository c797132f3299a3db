# ruff: noqa
# mypy: ignore-errors
"""Layers whose backward pass is their own autograd.Function."""

import torch
from torch import nn


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        dims = (0, *range(2, x.dim()))
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = x.mean(dims, keepdim=True)
        rstd = torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)
        xhat = (x - mean) * rstd
        ctx.save_for_backward(xhat, rstd, weight)
        return xhat * weight.view(shape) + bias.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        xhat, rstd, weight = ctx.saved_tensors
        dims = (0, *range(2, dy.dim()))
        shape = [1, -1] + [1] * (dy.dim() - 2)
        dbias = dy.sum(dims)
        dweight = (dy * xhat).sum(dims)
        m = dy.numel() / dy.size(1)
        g = dy * weight.view(shape)
        dx = rstd * (g - (weight * dbias).view(shape) / m - xhat * (weight * dweight).view(shape) / m)
        return dx, dweight, dbias, None


class FunctionBatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.training:
            with torch.no_grad():
                dims = (0, *range(2, x.dim()))
                self.running_mean.mul_(1 - self.momentum).add_(x.mean(dims), alpha=self.momentum)
                self.running_var.mul_(1 - self.momentum).add_(x.var(dims), alpha=self.momentum)
            return _Normalize.apply(x, self.weight, self.bias, self.eps)
        scale = self.weight / torch.sqrt(self.running_var + self.eps)
        return (x - self.running_mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


class _Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return x * r * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, r = ctx.saved_tensors
        n = x * r
        g = dy * weight
        dx = r * (g - n * (g * n).mean(-1, keepdim=True))
        return dx, (dy * n).flatten(0, -2).sum(0), None


class FunctionRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return _Rms.apply(x, self.weight, self.eps)
