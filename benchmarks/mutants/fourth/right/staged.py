# ruff: noqa
# mypy: ignore-errors
"""NumPy pairs that walk the computational graph one small stage at a time."""

import numpy as np


def batchnorm_forward(x, gamma, beta, eps=1e-5):
    N, D = x.shape
    mu = 1.0 / N * np.sum(x, axis=0)
    xmu = x - mu
    sq = xmu**2
    var = 1.0 / N * np.sum(sq, axis=0)
    sqrtvar = np.sqrt(var + eps)
    ivar = 1.0 / sqrtvar
    xhat = xmu * ivar
    gammax = gamma * xhat
    out = gammax + beta
    cache = (xhat, gamma, xmu, ivar, sqrtvar, var, eps)
    return out, cache


def batchnorm_backward(dout, cache):
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    N, D = dout.shape
    dbeta = np.sum(dout, axis=0)
    dgammax = dout
    dgamma = np.sum(dgammax * xhat, axis=0)
    dxhat = dgammax * gamma
    divar = np.sum(dxhat * xmu, axis=0)
    dxmu1 = dxhat * ivar
    dsqrtvar = -1.0 / (sqrtvar**2) * divar
    dvar = 0.5 * 1.0 / np.sqrt(var + eps) * dsqrtvar
    dsq = 1.0 / N * np.ones((N, D)) * dvar
    dxmu2 = 2 * xmu * dsq
    dx1 = dxmu1 + dxmu2
    dmu = -1 * np.sum(dxmu1 + dxmu2, axis=0)
    dx2 = 1.0 / N * np.ones((N, D)) * dmu
    dx = dx1 + dx2
    return dx, dgamma, dbeta


def layernorm_forward(x, gamma, beta, ln_param):
    eps = ln_param.get("eps", 1e-5)
    mean = np.mean(x, axis=1, keepdims=True)
    var = np.var(x, axis=1, keepdims=True)
    inv = (var + eps) ** -0.5
    x_norm = (x - mean) * inv
    out = x_norm * gamma + beta
    return out, (x_norm, inv, gamma)


def layernorm_backward(dout, cache):
    x_norm, inv, gamma = cache
    d_norm = dout * gamma
    dgamma = np.einsum("nd,nd->d", dout, x_norm)
    dbeta = np.einsum("nd->d", dout)
    dx = d_norm - d_norm.mean(1, keepdims=True) - x_norm * np.mean(d_norm * x_norm, axis=1, keepdims=True)
    return inv * dx, dgamma, dbeta


def spatial_groupnorm_forward(x, gamma, beta, G, gn_param):
    eps = gn_param.get("eps", 1e-5)
    N, C, H, W = x.shape
    xg = x.reshape((N, G, C // G, H, W))
    mean = xg.mean(axis=(2, 3, 4), keepdims=True)
    var = xg.var(axis=(2, 3, 4), keepdims=True)
    xg_hat = (xg - mean) / np.sqrt(var + eps)
    x_hat = xg_hat.reshape(N, C, H, W)
    out = gamma.reshape(1, C, 1, 1) * x_hat + beta.reshape(1, C, 1, 1)
    cache = (x_hat, gamma, mean, var, x, G, eps)
    return out, cache


def spatial_groupnorm_backward(dout, cache):
    x_hat, gamma, mean, var, x, G, eps = cache
    N, C, H, W = dout.shape
    m = C // G * H * W
    dbeta = np.sum(dout, axis=(0, 2, 3), keepdims=True)
    dgamma = np.sum(dout * x_hat, axis=(0, 2, 3), keepdims=True)
    dxhat = (dout * gamma.reshape(1, C, 1, 1)).reshape(N, G, C // G, H, W)
    xc = x.reshape(N, G, C // G, H, W) - mean
    dvar = np.sum(dxhat * xc * -0.5 * (var + eps) ** -1.5, axis=(2, 3, 4), keepdims=True)
    dmean = np.sum(-dxhat / np.sqrt(var + eps), axis=(2, 3, 4), keepdims=True)
    dx = dxhat / np.sqrt(var + eps) + 2.0 * xc * dvar / m + dmean / m
    return dx.reshape(N, C, H, W), dgamma, dbeta


def instancenorm_forward(x, gamma, beta, eps=1e-5):
    mu = x.mean((2, 3), keepdims=True)
    s = 1 / np.sqrt(x.var((2, 3), keepdims=True) + eps)
    xhat = (x - mu) * s
    return gamma[:, None, None] * xhat + beta[:, None, None], (xhat, s, gamma)


def instancenorm_backward(dout, cache):
    xhat, s, gamma = cache
    g = dout * gamma[:, None, None]
    dx = s * (g - g.mean((2, 3), keepdims=True) - xhat * (g * xhat).mean((2, 3), keepdims=True))
    return dx, (dout * xhat).sum((0, 2, 3)), dout.sum((0, 2, 3))
