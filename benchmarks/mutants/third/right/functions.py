# ruff: noqa
# mypy: ignore-errors
"""Functions that return more than the output, and pairs without a dictionary."""

import numpy as np
import torch


def layernorm_fwd(x, weight, bias, eps=1e-5):
    """(B, T, C) tensors; what the backward pass wants comes back beside the output."""
    B, T, C = x.size()
    mean = x.sum(-1, keepdim=True) / C
    xshift = x - mean
    var = (xshift**2).sum(-1, keepdim=True) / C
    rstd = (var + eps) ** -0.5
    out = xshift * rstd * weight + bias
    return out, (x, weight, mean, rstd)


def layernorm_bwd(dout, cache):
    x, w, mean, rstd = cache
    norm = (x - mean) * rstd
    db = dout.sum((0, 1))
    dw = (dout * norm).sum((0, 1))
    dnorm = dout * w
    dx = dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)
    dx *= rstd
    return dx, dw, db


def batch_norm(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """Changes the averages it is given, as torch does."""
    dims = (0, *range(2, x.dim()))
    shape = (1, -1, *[1] * (x.dim() - 2))
    if training:
        var, mean = torch.var_mean(x, dims, unbiased=False)
        n = x.numel() // x.size(1)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var * (n / (n - 1)), alpha=momentum)
    else:
        mean, var = running_mean, running_var
    inv = torch.rsqrt(var + eps) * weight
    return x * inv.view(shape) + (bias - mean * inv).view(shape)


def GroupNorm(x, gamma, beta, G, eps=1e-5):
    """gamma and beta are (1, C, 1, 1)."""
    N, C, H, W = x.shape
    x = torch.reshape(x, [N, G, C // G, H, W])
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    var = x.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
    x = (x - mean) / torch.sqrt(var + eps)
    x = torch.reshape(x, [N, C, H, W])
    return x * gamma + beta


def instance_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=(2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(2, 3), keepdims=True)
    out = (x - mean) / np.sqrt(variance + eps)
    return out * gamma[None, :, None, None] + beta[None, :, None, None], mean, variance


def bn_forward(x, gamma, beta, eps=1e-8):
    """Training only: no averages."""
    mu = np.mean(x, axis=0)
    var = np.var(x, axis=0)
    ivar = 1 / np.sqrt(var + eps)
    xhat = (x - mu) * ivar
    return gamma * xhat + beta, (xhat, gamma, ivar)


def bn_backward(dy, cache):
    xhat, gamma, ivar = cache
    m = dy.shape[0]
    dxhat = dy * gamma
    dx = ivar / m * (m * dxhat - np.sum(dxhat, axis=0) - xhat * np.sum(dxhat * xhat, axis=0))
    return dx, np.sum(dy * xhat, axis=0), np.sum(dy, axis=0)


class BatchNorm1d:
    """Tensors in a plain object that is called."""

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        self.eps = eps
        self.momentum = momentum
        self.training = True
        self.gamma = torch.ones(dim)
        self.beta = torch.zeros(dim)
        self.running_mean = torch.zeros(dim)
        self.running_var = torch.ones(dim)

    def __call__(self, x):
        if self.training:
            xmean = x.mean(0, keepdim=True)
            xvar = x.var(0, keepdim=True, unbiased=False)
        else:
            xmean = self.running_mean
            xvar = self.running_var
        xhat = (x - xmean) / torch.sqrt(xvar + self.eps)
        self.out = self.gamma * xhat + self.beta
        if self.training:
            with torch.no_grad():
                self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * xmean.squeeze(0)
                self.running_var = (1 - self.momentum) * self.running_var + self.momentum * xvar.squeeze(0)
        return self.out

    def parameters(self):
        return [self.gamma, self.beta]


class LayerNorm:
    """Forward and backward as static methods."""

    @staticmethod
    def forward(x, w, b):
        mean = x.mean(-1, keepdims=True)
        rstd = 1.0 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
        return (x - mean) * rstd * w + b, (x, w, mean, rstd)

    @staticmethod
    def backward(dout, cache):
        x, w, mean, rstd = cache
        norm = (x - mean) * rstd
        axes = tuple(range(x.ndim - 1))
        dnorm = dout * w
        dx = dnorm - dnorm.mean(-1, keepdims=True) - norm * (dnorm * norm).mean(-1, keepdims=True)
        return dx * rstd, (dout * norm).sum(axes), dout.sum(axes)
