"""Sandwiches: layers that usually come together, as one forward and one backward function.

A backward function returns dx first, then the gradients of the parameters in the order of the forward's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from normlab.scratch import _checks as check
from normlab.scratch.course.fast_layers import (
    conv_backward_fast,
    conv_forward_fast,
    max_pool_backward_fast,
    max_pool_forward_fast,
)
from normlab.scratch.course.layers import (
    affine_backward,
    affine_forward,
    batchnorm_backward_alt,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
    relu_backward,
    relu_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
)

__all__ = [
    "affine_bn_relu_backward",
    "affine_bn_relu_forward",
    "affine_ln_relu_backward",
    "affine_ln_relu_forward",
    "affine_norm_relu_backward",
    "affine_norm_relu_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "conv_bn_relu_backward",
    "conv_bn_relu_forward",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
]

Array = np.ndarray
Cache = Any
Step = tuple[Any, ...]  # a forward function and its arguments after x
NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "batchnorm": (batchnorm_forward, batchnorm_backward_alt),
    "layernorm": (layernorm_forward, layernorm_backward),
}


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Affine, then ReLU."""
    return _forward(x, (affine_forward, w, b), (relu_forward,))


def affine_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """Gradients (dx, dw, db)."""
    return _backward(dout, cache, affine_backward, relu_backward)


def affine_norm_relu_forward(
    x: Array,
    w: Array,
    b: Array,
    gamma: Array,
    beta: Array,
    norm_param: dict[str, Any],
    normalization: str = "batchnorm",
) -> tuple[Array, Cache]:
    """Affine, then batch or layer norm, then ReLU.

    `normalization` is "batchnorm" or "layernorm", and `norm_param` the bn_param or ln_param of that layer.
    """
    forward, _ = NORMS[check.one_of("normalization", normalization, tuple(NORMS))]
    out, caches = _forward(x, (affine_forward, w, b), (forward, gamma, beta, norm_param), (relu_forward,))
    return out, (normalization, caches)


def affine_norm_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """Gradients (dx, dw, db, dgamma, dbeta)."""
    normalization, caches = cache
    return _backward(dout, caches, affine_backward, NORMS[normalization][1], relu_backward)


def affine_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """Affine, then batch norm, then ReLU."""
    return affine_norm_relu_forward(x, w, b, gamma, beta, bn_param, "batchnorm")


def affine_ln_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, ln_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """Affine, then layer norm, then ReLU."""
    return affine_norm_relu_forward(x, w, b, gamma, beta, ln_param, "layernorm")


affine_bn_relu_backward = affine_ln_relu_backward = affine_norm_relu_backward


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Convolution, then ReLU."""
    return _forward(x, (conv_forward_fast, w, b, conv_param), (relu_forward,))


def conv_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """Gradients (dx, dw, db)."""
    return _backward(dout, cache, conv_backward_fast, relu_backward)


def conv_bn_relu_forward(
    x: Array,
    w: Array,
    b: Array,
    gamma: Array,
    beta: Array,
    conv_param: Mapping[str, Any],
    bn_param: dict[str, Any],
) -> tuple[Array, Cache]:
    """Convolution, then batch norm of its channels, then ReLU."""
    norm = (spatial_batchnorm_forward, gamma, beta, bn_param)
    return _forward(x, (conv_forward_fast, w, b, conv_param), norm, (relu_forward,))


def conv_bn_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """Gradients (dx, dw, db, dgamma, dbeta)."""
    return _backward(dout, cache, conv_backward_fast, spatial_batchnorm_backward, relu_backward)


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: Mapping[str, Any], pool_param: Mapping[str, Any]
) -> tuple[Array, Cache]:
    """Convolution, then ReLU, then max pooling."""
    return _forward(x, (conv_forward_fast, w, b, conv_param), (relu_forward,), (max_pool_forward_fast, pool_param))


def conv_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """Gradients (dx, dw, db)."""
    return _backward(dout, cache, conv_backward_fast, relu_backward, max_pool_backward_fast)


def _forward(x: Array, *steps: Step) -> tuple[Array, Cache]:
    caches = []
    for forward, *arguments in steps:
        x, cache = forward(x, *arguments)
        caches.append(cache)
    return x, tuple(caches)


def _backward(dout: Array, caches: Cache, *backwards: Callable[..., Any]) -> tuple[Array, ...]:
    grads: tuple[Array, ...] = ()
    for backward, cache in zip(reversed(backwards), reversed(caches), strict=True):
        returned = backward(dout, cache)
        dout, *of_params = returned if isinstance(returned, tuple) else (returned,)
        grads = (*of_params, *grads)
    return dout, *grads
