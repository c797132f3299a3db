# ruff: noqa
# mypy: ignore-errors
"""Single functions."""

import numpy as np
import torch


def group_norm(x, num_groups, weight, bias, eps=1e-5):
    n, c = x.shape[0], x.shape[1]
    grouped = x.reshape(n, num_groups, c // num_groups, *x.shape[2:])
    dims = tuple(range(2, grouped.dim()))
    grouped = grouped - grouped.mean(dims, keepdim=True)
    grouped = grouped / torch.sqrt(grouped.pow(2).mean(dims, keepdim=True) + eps)
    shape = (1, c) + (1,) * (x.dim() - 2)
    return grouped.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)


def layer_norm(x, gamma, beta, eps=1e-5):
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return gamma * ((x - mean) / np.sqrt(variance + eps)) + beta


def batch_norm(x, running_mean, running_var, weight, bias, training, momentum=0.1, eps=1e-5):
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.dim())]
    if training:
        mean = x.mean(dims)
        var = x.var(dims, unbiased=False)
        with torch.no_grad():
            running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
            running_var.copy_((1 - momentum) * running_var + momentum * x.var(dims, unbiased=True))
    else:
        mean, var = running_mean, running_var
    x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + eps)
    return x * weight.view(shape) + bias.view(shape)
