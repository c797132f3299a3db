"""Group normalization of images, and its two extremes: layer norm (one group) and instance norm (a group a channel).

    out = gamma * xhat + beta,    xhat = (x - mean) / sqrt(var + eps)

mean and var are those of one sample's C/G channels of a group and their H * W positions: m = C/G * H * W elements.
With x seen as (N, G, C/G, H, W) they run along the last three axes; that reshape is the whole difference from layer
norm. Nothing depends on the batch, so training and testing are alike.

The backward pass is that of `_standardize` with this m and g = gamma * dout, formed first: gamma differs from channel
to channel inside a group (see `_layer`). dgamma and dbeta belong to a channel, whatever its group: sums over samples
and positions. In instance norm a group is one channel, gamma is constant where means are taken, and m = H * W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check
from normlab.scratch._standardize import standardize, standardize_backward

Cache = Any
Gradients = tuple[np.ndarray, np.ndarray, np.ndarray]


def spatial_groupnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, G: int, gn_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Group normalization of images: every sample, in G groups of channels, over group and positions.

    x (N, C, H, W), gamma and beta (1, C, 1, 1), G a divisor of C; out (N, C, H, W). `gn_param`: eps (default
    1e-5). Wu and He, arXiv:1803.08494.
    """
    x = check.floats("x", x, ("N", "C", "H", "W"))
    samples, channels, height, width = x.shape
    groups = check.integer("G", G, 1)
    if channels % groups:
        raise UsageError(f"G={groups} does not divide the {channels} channels of x; choose a divisor of {channels}")
    gamma = check.like("gamma", gamma, x, (1, channels, 1, 1))
    beta = check.like("beta", beta, x, (1, channels, 1, 1))
    grouped = x.reshape(samples, groups, channels // groups, height, width)
    xhat, inverse, _, _ = standardize(grouped, (2, 3, 4), check.eps("gn_param", gn_param))
    out = gamma * xhat.reshape(x.shape)
    out += beta
    return out, {"gamma": gamma, "xhat": xhat, "inverse": inverse}


def spatial_groupnorm_backward(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of group normalization, the latter two of shape (1, C, 1, 1)."""
    gamma, xhat, inverse = cache["gamma"], cache["xhat"], cache["inverse"]
    samples, groups, per_group, height, width = xhat.shape
    dout = check.like("dout", dout, xhat, (samples, groups * per_group, height, width))
    dbeta = dout.sum((0, 2, 3), keepdims=True)
    dgamma = (dout * xhat.reshape(dout.shape)).sum((0, 2, 3), keepdims=True)
    dxhat = (dout * gamma).reshape(xhat.shape)
    dx = standardize_backward(dxhat, xhat, inverse, (2, 3, 4))
    return dx.reshape(dout.shape), dgamma, dbeta


def spatial_instancenorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, in_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Instance normalization of images: every channel of every sample over its positions; group norm with G = C.

    x (N, C, H, W), gamma and beta (1, C, 1, 1); out (N, C, H, W). `in_param`: eps (default 1e-5). Ulyanov et al.,
    arXiv:1607.08022.
    """
    x = check.floats("x", x, ("N", "C", "H", "W"))
    return spatial_groupnorm_forward(x, gamma, beta, max(1, x.shape[1]), {"eps": check.eps("in_param", in_param)})


def spatial_instancenorm_backward(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of instance normalization, the latter two of shape (1, C, 1, 1)."""
    return spatial_groupnorm_backward(dout, cache)


def spatial_layernorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, ln_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Layer normalization of images: every sample over its channels and positions; group norm with G = 1.

    x (N, C, H, W), gamma and beta (1, C, 1, 1); out (N, C, H, W). `ln_param`: eps (default 1e-5). Ba et al.,
    arXiv:1607.06450.
    """
    return spatial_groupnorm_forward(x, gamma, beta, 1, {"eps": check.eps("ln_param", ln_param)})


def spatial_layernorm_backward(dout: np.ndarray, cache: Cache) -> Gradients:
    """Gradients (dx, dgamma, dbeta) of layer normalization of images, the latter two of shape (1, C, 1, 1)."""
    return spatial_groupnorm_backward(dout, cache)
