# mypy: ignore-errors
"""Batch normalization in NumPy, as teaching assignments ask for it."""

import numpy as np


def batchnorm_forward(x, gamma, beta, bn_param):
    """Normalize (N, C, *) per channel; running statistics live in bn_param."""
    eps = bn_param.get("eps", 1e-5)
    momentum = bn_param.get("momentum", 0.9)
    channels = x.shape[1]
    axes = (0, *range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    n = x.size // channels
    running_mean = bn_param.get("running_mean", np.zeros(channels, dtype=x.dtype))
    running_var = bn_param.get("running_var", np.ones(channels, dtype=x.dtype))
    training = bn_param["mode"] == "train"
    if training:
        mean = x.sum(axis=axes) / n
        centred = x - mean.reshape(shape)
        var = (centred**2).sum(axis=axes) / n
        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var = momentum * running_var + (1 - momentum) * var
    else:
        mean, var = running_mean, running_var
        centred = x - mean.reshape(shape)
    std = np.sqrt(var + eps).reshape(shape)
    xhat = centred / std
    out = gamma.reshape(shape) * xhat + beta.reshape(shape)
    bn_param["running_mean"] = running_mean
    bn_param["running_var"] = running_var
    return out, (xhat, std, gamma.reshape(shape), axes, n, training)


def batchnorm_backward(dout, cache):
    xhat, std, gamma, axes, n, training = cache
    dbeta = dout.sum(axis=axes)
    dgamma = (dout * xhat).sum(axis=axes)
    dxhat = dout * gamma
    if not training:
        return dxhat / std, dgamma, dbeta
    mean_term = dxhat.sum(axis=axes, keepdims=True) / n
    var_term = xhat * (dxhat * xhat).sum(axis=axes, keepdims=True) / n
    dx = (dxhat - mean_term - var_term) / std
    return dx, dgamma, dbeta
