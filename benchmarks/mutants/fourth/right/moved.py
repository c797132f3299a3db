# ruff: noqa
# mypy: ignore-errors
"""Spatial batch norm with the channel axis moved to the end, in one function."""

import numpy as np


def spatial_batchnorm_forward(x, gamma, beta, bn_param):
    mode = bn_param["mode"]
    eps = bn_param.get("eps", 1e-5)
    momentum = bn_param.get("momentum", 0.9)
    C = x.shape[1]
    rm = bn_param.setdefault("running_mean", np.zeros(C, x.dtype))
    rv = bn_param.setdefault("running_var", np.zeros(C, x.dtype))
    rows = np.moveaxis(x, 1, -1)
    shape = rows.shape
    rows = rows.reshape(-1, C)
    if mode == "train":
        mu, var = rows.mean(0), rows.var(0)
        bn_param["running_mean"] = momentum * rm + (1 - momentum) * mu
        bn_param["running_var"] = momentum * rv + (1 - momentum) * var
    else:
        mu, var = rm, rv
    istd = 1 / np.sqrt(var + eps)
    xhat = (rows - mu) * istd
    out = np.moveaxis((gamma * xhat + beta).reshape(shape), -1, 1)
    return out, (xhat, istd, gamma)


def spatial_batchnorm_backward(dout, cache):
    xhat, istd, gamma = cache
    d = np.moveaxis(dout, 1, -1)
    shape = d.shape
    d = d.reshape(xhat.shape)
    m = len(d)
    dbeta = d.sum(0)
    dgamma = (d * xhat).sum(0)
    dx = gamma * istd / m * (m * d - dbeta - xhat * dgamma)
    return np.moveaxis(dx.reshape(shape), -1, 1), dgamma, dbeta
