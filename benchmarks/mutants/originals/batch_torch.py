# mypy: ignore-errors
"""Batch normalization as a torch Module with a backward pass written by hand."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps, axes, training):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        std = torch.sqrt(var + eps).reshape(shape)
        xhat = (x - mean.reshape(shape)) / std
        ctx.save_for_backward(xhat, std, weight.reshape(shape))
        ctx.axes = axes
        ctx.training = training
        return weight.reshape(shape) * xhat + bias.reshape(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, std, weight = ctx.saved_tensors
        axes = ctx.axes
        dbias = dy.sum(axes)
        dweight = (dy * xhat).sum(axes)
        g = dy * weight
        if ctx.training:
            mean_term = g.mean(axes, keepdim=True)
            var_term = xhat * (g * xhat).mean(axes, keepdim=True)
            dx = (g - mean_term - var_term) / std
        else:
            dx = g / std
        return dx, None, None, dweight, dbias, None, None, None


class BatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")
        axes = (0, *range(2, x.ndim))
        shape = (1, -1) + (1,) * (x.ndim - 2)
        n = x.numel() // x.shape[1]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.training:
            if n < 2:
                raise ValueError("expected more than one value per channel in training")
            mean = wide.mean(axes)
            centred = wide - mean.reshape(shape)
            var = (centred * centred).mean(axes)
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))
        else:
            mean, var = self.running_mean, self.running_var
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        y = _Normalize.apply(wide, mean.detach(), var.detach(), weight, bias, self.eps, axes, self.training)
        return y.to(x.dtype)
