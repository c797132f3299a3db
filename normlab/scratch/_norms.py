"""Batch, layer and group normalization over (N, D) and (N, C, H, W) arrays.

All of them are the norms of `normlab.norms`, run by `normlab.kernels.stages` as the torch layers are; only
`batchnorm_backward` walks back through the graph of batch norm step by step, to be read.

With y = gamma * xhat + beta and xhat = (x - mean) / std over the m elements that were normalized together, the
backward pass in closed form is

    dx = gamma / std * (dout - sum(dout) / m - xhat * sum(dout * xhat) / m):

the gradient of a plain scaling, less its share through the mean, less its share through the variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.kernels import stages
from normlab.scratch import _checks as check

Cache = Any
Param = dict[str, Any]


def batchnorm_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param) -> tuple[np.ndarray, Cache]:
    """Batch normalization: every feature is standardized over the batch, then scaled and shifted.

        out = gamma * (x - mean) / sqrt(var + eps) + beta

    x (N, D), gamma and beta (D,); out (N, D). `bn_param`: mode, 'train' or 'test'; eps (default 1e-5);
    momentum, the weight of the old in the running statistics (default 0.9); running_mean and running_var (D,)
    (default zeros), which training updates in place of `bn_param`,

        running = momentum * running + (1 - momentum) * batch,

    with the biased variance, and which testing normalizes with. Ioffe and Szegedy, arXiv:1502.03167.
    """
    x = check.floats("x", x, ("N", "D"))
    return _batchnorm(x, gamma, beta, bn_param)


def batchnorm_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of batch normalization, one step of its graph at a time ("vanilla")."""
    x, gamma, dout = _unpack(dout, cache, ("N", "D"))
    eps, mean, var = (cache[key] for key in ("eps", "mean", "var"))
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


def batchnorm_backward_alt(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of batch normalization in closed form: the graph's steps multiplied out.

    The gradient through the variance is proportional to xhat, the one through the mean constant over the batch:

        dx = gamma / std * (dout - mean(dout) - xhat * mean(dout * xhat)).
    """
    return _backward(dout, cache, ("N", "D"))


def layernorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, ln_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Layer normalization: every sample is standardized over its features; training and testing are alike.

    x (N, D), gamma and beta (D,); out (N, D). `ln_param`: eps (default 1e-5). Ba et al., arXiv:1607.06450.

    To the kernels a sample is one plane of D elements; gamma and beta, which vary within it, are applied after.
    """
    x = check.floats("x", x, ("N", "D"))
    gamma = check.like("gamma", gamma, x, (x.shape[1],))
    beta = check.like("beta", beta, x, (x.shape[1],))
    xhat, cache = stages.forward("in", x[:, None], {}, eps=_eps(ln_param, "ln_param"))
    xhat = xhat.reshape(x.shape)
    out = gamma * xhat
    out += beta
    return out, {"stages": cache, "x": x, "gamma": gamma, "xhat": xhat}


def layernorm_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of layer normalization: batch norm's closed form along the other axis.

    With g = gamma * dout, dx = 1 / std * (g - mean(g) - xhat * mean(g * xhat)), means over the features.
    """
    x, gamma, dout = _unpack(dout, cache, ("N", "D"))
    dx, _ = stages.backward((dout * gamma)[:, None], cache["stages"])
    return dx.reshape(x.shape), (dout * cache["xhat"]).sum(0), dout.sum(0)


def spatial_batchnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param
) -> tuple[np.ndarray, Cache]:
    """Batch normalization of images: every channel over the samples and positions.

    x (N, C, H, W), gamma and beta (C,), out (N, C, H, W): `batchnorm_forward` on x reshaped to (N*H*W, C),
    without the copy. `bn_param` is the same.
    """
    x = check.floats("x", x, ("N", "C", "H", "W"))
    return _batchnorm(x, gamma, beta, bn_param)


def spatial_batchnorm_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of `spatial_batchnorm_forward`: the closed form, sums over N, H and W."""
    return _backward(dout, cache, ("N", "C", "H", "W"))


def spatial_groupnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, G: int, gn_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Group normalization of images: every sample, in G groups of channels, over group and positions.

    x (N, C, H, W), gamma and beta (1, C, 1, 1), G a divisor of C; out (N, C, H, W). `gn_param`: eps (default
    1e-5). Wu and He, arXiv:1803.08494.
    """
    x = check.floats("x", x, ("N", "C", "H", "W"))
    channels = x.shape[1]
    groups = check.integer("G", G, 1)
    if channels % groups:
        raise UsageError(f"G={groups} does not divide the {channels} channels of x; choose a divisor of {channels}")
    shape = (1, channels, 1, 1)
    return _forward("gn", x, gamma, beta, shape, gn_param, "gn_param", options={"groups": groups})


def spatial_groupnorm_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of group normalization, the latter two of shape (1, C, 1, 1).

    With g = gamma * dout, dx = 1 / std * (g - mean(g) - xhat * mean(g * xhat)), means over group and positions.
    """
    return _backward(dout, cache, ("N", "C", "H", "W"))


def _batchnorm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: Param) -> tuple[np.ndarray, Cache]:
    mode = check.one_of("bn_param['mode']", bn_param.get("mode"), ("train", "test"))
    momentum = check.number("bn_param['momentum']", bn_param.get("momentum", 0.9), 0, 1)
    shape = (x.shape[1],)
    running = [
        check.like(f"bn_param[{key!r}]", bn_param.get(key, np.zeros(shape)), x, shape)
        for key in ("running_mean", "running_var")
    ]
    out, cache = _forward("bn", x, gamma, beta, shape, bn_param, "bn_param", training=mode == "train", running=running)
    mean, var = running
    if mode == "train" and x.size:
        mean, var, _ = cache["stages"].batch
        running = [
            (momentum * old + (1 - momentum) * new).astype(x.dtype)
            for old, new in zip(running, (mean, var), strict=True)
        ]
    bn_param["running_mean"], bn_param["running_var"] = running
    cache.update(mode=mode, mean=mean.astype(x.dtype), var=var.astype(x.dtype))
    return out, cache


def _forward(
    norm: str,
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    shape: tuple[int, ...],
    param: Mapping[str, Any],
    param_name: str,
    *,
    options: Mapping[str, Any] | None = None,
    training: bool = True,
    running: Any = None,
) -> tuple[np.ndarray, Cache]:
    gamma, beta = check.like("gamma", gamma, x, shape), check.like("beta", beta, x, shape)
    eps = _eps(param, param_name)
    params = {"weight": gamma.reshape(-1), "bias": beta.reshape(-1)}
    out, cache = stages.forward(norm, x, params, training=training, running=running, eps=eps, options=options)
    return out, {"stages": cache, "x": x, "gamma": gamma, "eps": eps}


def _eps(param: Mapping[str, Any], name: str) -> float:
    return check.number(f"{name}['eps']", param.get("eps", 1e-5), 0, float("inf"))


def _unpack(dout: np.ndarray, cache: Cache, shape: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = cache["x"]
    check.check_shape("the x of cache", x, shape)
    return x, cache["gamma"], check.like("dout", dout, x, x.shape)


def _backward(dout: np.ndarray, cache: Cache, shape: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, gamma, dout = _unpack(dout, cache, shape)
    dx, grads = stages.backward(dout, cache["stages"])
    return dx, grads["weight"].reshape(gamma.shape), grads["bias"].reshape(gamma.shape)
