# ruff: noqa
# mypy: ignore-errors
"""NumPy and torch over channels that come last, in functions and pairs."""

import numpy as np
import torch


def batch_norm_nhwc(x, gamma, beta, moving_mean, moving_var, training, momentum=0.9, eps=1e-5):
    """Returns the output and the new averages."""
    if training:
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axis=axes), x.var(axis=axes)
        moving_mean = moving_mean * momentum + mean * (1 - momentum)
        moving_var = moving_var * momentum + var * (1 - momentum)
    else:
        mean, var = moving_mean, moving_var
    return (x - mean) / np.sqrt(var + eps) * gamma + beta, moving_mean, moving_var


def instance_norm_nhwc(x, scale, offset, eps=1e-5):
    axes = tuple(range(1, x.ndim - 1))
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    return scale * (x - mean) / np.sqrt(var + eps) + offset


def group_norm_nhwc(x, gamma, beta, G, eps=1e-5):
    shape = x.shape
    N, C = shape[0], shape[-1]
    g = x.reshape(N, -1, G, C // G)
    mean = g.mean(axis=(1, 3), keepdims=True)
    var = g.var(axis=(1, 3), keepdims=True)
    g = (g - mean) / np.sqrt(var + eps)
    return g.reshape(shape) * gamma + beta


def layer_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(dim=-1, keepdim=True)
    std = torch.sqrt(((x - mean) ** 2).mean(dim=-1, keepdim=True) + eps)
    return gamma * ((x - mean) / std) + beta


def rms_norm(x, g, eps=1e-6):
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps) * g


def rmsnorm_forward(x, w, eps=1e-5):
    r = 1.0 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * r * w, (x, r, w)


def rmsnorm_backward(dout, cache):
    x, r, w = cache
    n = x.shape[-1]
    dw = (dout * x * r).reshape(-1, n).sum(0)
    g = dout * w
    dx = r * g - x * r**3 * (g * x).sum(-1, keepdims=True) / n
    return dx, dw
