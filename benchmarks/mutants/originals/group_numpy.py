# mypy: ignore-errors
"""Spatial group normalization in NumPy: (N, C, H, W) in G groups."""

import numpy as np


def spatial_groupnorm_forward(x, gamma, beta, G, gn_param):
    eps = gn_param.get("eps", 1e-5)
    N, C, H, W = x.shape
    grouped = x.reshape(N, G, C // G, H, W)
    mean = grouped.mean(axis=(2, 3, 4), keepdims=True)
    centred = grouped - mean
    var = (centred**2).mean(axis=(2, 3, 4), keepdims=True)
    std = np.sqrt(var + eps)
    xhat = (centred / std).reshape(N, C, H, W)
    out = gamma.reshape(1, C, 1, 1) * xhat + beta.reshape(1, C, 1, 1)
    return out, (xhat, std, gamma, G)


def spatial_groupnorm_backward(dout, cache):
    xhat, std, gamma, G = cache
    N, C, H, W = dout.shape
    dbeta = dout.sum(axis=(0, 2, 3))
    dgamma = (dout * xhat).sum(axis=(0, 2, 3))
    dxhat = (dout * gamma.reshape(1, C, 1, 1)).reshape(N, G, C // G, H, W)
    xhat = xhat.reshape(N, G, C // G, H, W)
    mean_term = dxhat.mean(axis=(2, 3, 4), keepdims=True)
    var_term = xhat * (dxhat * xhat).mean(axis=(2, 3, 4), keepdims=True)
    dx = (dxhat - mean_term - var_term) / std
    return dx.reshape(N, C, H, W), dgamma, dbeta
