# mypy: ignore-errors
"""Layer normalization in NumPy over the features of (N, D)."""

import numpy as np


def layernorm_forward(x, gamma, beta, ln_param):
    eps = ln_param.get("eps", 1e-5)
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    var = (centred**2).mean(axis=1, keepdims=True)
    std = np.sqrt(var + eps)
    xhat = centred / std
    out = gamma * xhat + beta
    return out, (xhat, std, gamma)


def layernorm_backward(dout, cache):
    xhat, std, gamma = cache
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = dout * gamma
    mean_term = dxhat.mean(axis=1, keepdims=True)
    var_term = xhat * (dxhat * xhat).mean(axis=1, keepdims=True)
    dx = (dxhat - mean_term - var_term) / std
    return dx, dgamma, dbeta
