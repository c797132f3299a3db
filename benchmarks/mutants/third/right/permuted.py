# ruff: noqa
# mypy: ignore-errors
"""Modules that move the channels and back, and that compute through torch's own functions."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """Channels first, through torch's layer norm."""

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class BatchNormFlat(nn.Module):
    """momentum on the old value, as most frameworks write it."""

    def __init__(self, num_features, momentum=0.9, eps=1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("moving_avg", torch.zeros(num_features))
        self.register_buffer("moving_var", torch.ones(num_features))

    def forward(self, x):
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        if self.training:
            mean = rows.mean(dim=0)
            var = ((rows - mean) ** 2).mean(dim=0)
            self.moving_avg = self.momentum * self.moving_avg + (1 - self.momentum) * mean.detach()
            self.moving_var = self.momentum * self.moving_var + (1 - self.momentum) * var.detach()
        else:
            mean, var = self.moving_avg, self.moving_var
        rows = self.gamma * (rows - mean) / (var + self.eps) ** 0.5 + self.beta
        return rows.reshape(n, h, w, c).permute(0, 3, 1, 2)


class ScaleOnlyLayerNorm(nn.Module):
    def __init__(self, ndim, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class RootMeanSquare(nn.Module):
    def __init__(self, d, eps=1e-8):
        super().__init__()
        self.eps, self.d = eps, d
        self.scale = nn.Parameter(torch.ones(d))

    def forward(self, x):
        norm = x.norm(2, dim=-1, keepdim=True)
        return self.scale * x / torch.sqrt(norm**2 / self.d + self.eps)


class Normalize(nn.Module):
    """A batch norm under an uninformative name, its averages plain tensors."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size))
        self.ema_mean = torch.zeros(size)
        self.ema_var = torch.ones(size)

    def forward(self, x):
        if self.training:
            mean = x.mean(0)
            var = (x - mean).square().mean(0)
            self.ema_mean = 0.95 * self.ema_mean + 0.05 * mean.detach()
            self.ema_var = 0.95 * self.ema_var + 0.05 * var.detach()
        else:
            mean, var = self.ema_mean, self.ema_var
        return self.scale * (x - mean) * torch.rsqrt(var + 1e-4) + self.shift


def build_group_norm(channels=6):
    return nn.GroupNorm(2, channels)
