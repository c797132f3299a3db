"""Batch normalization: every feature, or every channel of images, is standardized over the batch.

    out = gamma * xhat + beta,    xhat = (x - mean) / sqrt(var + eps)

mean and var are those of the m elements that share a gamma: the N samples of an (N, D) array, the N * H * W pixels of
a channel of images. So gamma is a constant factor of everything that is averaged, and the backward pass of
`_standardize` holds with g = gamma * dout, with gamma inside its means or pulled out of them.

In testing, running averages of mean and var are constants: out is an affine map of x, and dx = gamma / std * dout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.scratch import _checks as check
from normlab.scratch._standardize import shifted, standardize, standardize_backward

Cache = Any
Param = dict[str, Any]
Gradients = tuple[np.ndarray, np.ndarray, np.ndarray]


def batchnorm_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param) -> tuple[np.ndarray, Cache]:
    """Batch normalization: every feature is standardized over the batch, then scaled and shifted.

        out = gamma * (x - mean) / sqrt(var + eps) + beta

    x (N, D), gamma and beta (D,); out (N, D). `bn_param`: mode, 'train' or 'test'; eps (default 1e-5);
    momentum, the weight of the old in the running statistics (default 0.9); running_mean and running_var (D,)
    (default zeros), which training updates in place of `bn_param`,

        running = momentum * running + (1 - momentum) * batch,

    with the biased variance, and which testing normalizes with. Ioffe and Szegedy, arXiv:1502.03167.
    """
    return _forward(check.floats("x", x, ("N", "D")), gamma, beta, bn_param)


def batchnorm_backward(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of batch normalization, one step of its graph at a time ("vanilla")."""
    x, dout = _unpack(dout, cache, ("N", "D"))
    gamma, eps, mean, var = (cache[key] for key in ("gamma", "eps", "mean", "var"))
    m = len(x)

    # the forward pass again, a name for every node of the graph
    centered = x - mean
    std = np.sqrt(var + eps)
    inverse = 1 / std
    xhat = centered * inverse

    # out = scaled + beta, scaled = gamma * xhat
    dbeta = dout.sum(0)
    dgamma = (dout * xhat).sum(0)
    dxhat = dout * gamma
    # xhat = centered * inverse: a product passes to each factor the other one
    dcentered = dxhat * inverse
    if cache["mode"] == "test":  # mean and var are constants: the graph ends here
        return dcentered, dgamma, dbeta
    dinverse = (dxhat * centered).sum(0)
    # inverse = 1 / std, std = sqrt(var + eps)
    dstd = -dinverse / std**2
    dvar = 0.5 * dstd / std
    # var = mean of squared: every element of the batch has the share 1 / m
    dsquared = np.broadcast_to(dvar / m, x.shape)
    # squared = centered^2: the second branch that leaves centered, so its gradient is added
    dcentered = dcentered + 2 * centered * dsquared
    # centered = x - mean: two branches leave x, one directly, one through the mean
    dmean = -dcentered.sum(0)
    dx = dcentered + np.broadcast_to(dmean / m, x.shape)
    return dx, dgamma, dbeta


def batchnorm_backward_alt(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of batch normalization in closed form: the graph's steps multiplied out.

    The gradient through the variance is proportional to xhat, the one through the mean constant over the batch:

        dx = gamma / std * (dout - mean(dout) - xhat * mean(dout * xhat)).
    """
    return _backward(dout, cache, ("N", "D"))


def spatial_batchnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param
) -> tuple[np.ndarray, Cache]:
    """Batch normalization of images: every channel over the samples and positions.

    x (N, C, H, W), gamma and beta (C,), out (N, C, H, W): `batchnorm_forward` on x transposed to (N, H, W, C) and
    reshaped to (N*H*W, C), without the copies. `bn_param` is the same.
    """
    return _forward(check.floats("x", x, ("N", "C", "H", "W")), gamma, beta, bn_param)


def spatial_batchnorm_backward(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of `spatial_batchnorm_forward`: the closed form, sums over N, H and W."""
    return _backward(dout, cache, ("N", "C", "H", "W"))


def standardize_batch(x: np.ndarray, param: Param, name: str = "bn_param") -> Cache:
    """The half of batch norm before gamma and beta: standardizes x and updates the running statistics of `param`.

    Returns a dictionary with x, xhat, inverse (1 / std), mean and var (C,) of what x was standardized with, eps and
    mode.
    """
    mode = check.one_of(f"{name}['mode']", param.get("mode"), ("train", "test"))
    momentum = check.number(f"{name}['momentum']", param.get("momentum", 0.9), 0, 1)
    eps = check.eps(name, param)
    channels = x.shape[1]
    mean, var = (
        check.like(f"{name}[{key!r}]", param.get(key, np.zeros(channels)), x, (channels,))
        for key in ("running_mean", "running_var")
    )
    if mode == "train" and x.size:
        xhat, inverse, batch_mean, batch_var = standardize(x, _all_but_channels(x), eps)
        batch_mean, batch_var = batch_mean.reshape(-1), batch_var.reshape(-1)
        param["running_mean"] = (momentum * mean + (1 - momentum) * batch_mean).astype(x.dtype)
        param["running_var"] = (momentum * var + (1 - momentum) * batch_var).astype(x.dtype)
        mean, var = batch_mean.astype(x.dtype), batch_var.astype(x.dtype)
    else:
        param["running_mean"], param["running_var"] = mean, var
        inverse = (1 / np.sqrt(per_channel(var, x) + eps)).astype(x.dtype)
        xhat = shifted(x, per_channel(mean, x)) * inverse
    return {"x": x, "xhat": xhat, "inverse": inverse, "mean": mean, "var": var, "eps": eps, "mode": mode}


def standardize_batch_backward(dxhat: np.ndarray, cache: Cache) -> np.ndarray:
    """The gradient of `standardize_batch` with respect to x."""
    xhat, inverse = cache["xhat"], cache["inverse"]
    if cache["mode"] == "test":
        dx: np.ndarray = dxhat * inverse
        return dx
    return standardize_backward(dxhat, xhat, inverse, _all_but_channels(xhat))


def per_channel(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns values (C,) as (1, C) or (1, C, 1, 1), to be combined with x."""
    return values.reshape((1, -1) + (1,) * (x.ndim - 2))


def _forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param) -> tuple[np.ndarray, Cache]:
    gamma = check.like("gamma", gamma, x, (x.shape[1],))
    beta = check.like("beta", beta, x, (x.shape[1],))
    cache = standardize_batch(x, bn_param)
    out = per_channel(gamma, x) * cache["xhat"]
    out += per_channel(beta, x)
    return out, {**cache, "gamma": gamma}


def _backward(dout: np.ndarray, cache: Cache, shape: tuple[str, ...]) -> Gradients:
    x, dout = _unpack(dout, cache, shape)
    over = _all_but_channels(x)
    dbeta = dout.sum(over)
    dgamma = (dout * cache["xhat"]).sum(over)
    dxhat = dout * per_channel(cache["gamma"], x)
    return standardize_batch_backward(dxhat, cache), dgamma, dbeta


def _all_but_channels(x: np.ndarray) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def _unpack(dout: np.ndarray, cache: Cache, shape: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    x = cache["x"]
    check.check_shape("the x of cache", x, shape)
    return x, check.like("dout", dout, x, x.shape)
