"""Affine, ReLU and dropout: the layers that the others stand between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check

Cache = Any


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Cache]:
    """A fully connected layer: out = x w + b, with every sample of `x` read as one row.

    x (N, d_1, ..., d_k), w (D, M) with D = d_1 * ... * d_k, b (M,); out (N, M) in the dtype of x.
    """
    x = check.floats("x", x)
    if x.ndim < 2:
        raise UsageError(f"x has shape {x.shape}; expected (N, d_1, ..., d_k), one sample a row")
    w = check.like("w", w, x, (math.prod(x.shape[1:]), "M"))
    b = check.like("b", b, x, (w.shape[1],))
    out = _rows(x) @ w
    out += b
    return out, (x, w, b)


def affine_backward(
    dout: np.ndarray, cache: Cache, *, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of an affine layer: dx = dout w^T, dw = x^T dout, db = the sum of dout over the samples.

    out_nm = sum_d x_nd w_dm + b_m, so x_nd is felt by every out_nm through w_dm, and w_dm by every sample
    through x_nd. A first layer, whose input nobody trains, can save dx: `need_dx=False` returns None for it.
    """
    x, w, b = cache
    dout = check.like("dout", dout, x, (len(x), len(b)))
    dx = (dout @ w.T).reshape(x.shape) if need_dx else None
    return dx, _rows(x).T @ dout, dout.sum(0)


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, Cache]:
    """The rectifier out = max(0, x), element by element, for any shape. The cache is x."""
    x = check.floats("x", x)
    return np.maximum(x, 0), x


def relu_backward(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Gradient of the rectifier: dout where x > 0, else 0 (at 0 itself the subgradient 0 is taken)."""
    x = cache
    return check.like("dout", dout, x, x.shape) * (x > 0)


def dropout_forward(x: np.ndarray, dropout_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """Keeps each element with probability p and zeroes the others, in training; any shape.

    `dropout_param`: p, the probability of KEEPING, in (0, 1]; mode, 'train' or 'test'; optionally
    kind, 'inverted' (default) or 'vanilla'; seed, which fixes the mask; or rng, a `numpy.random.RandomState`
    to draw it from (default: NumPy's global one).

        inverted   train: out = x * mask / p    test: out = x
        vanilla    train: out = x * mask        test: out = p * x

    Either way the expectation over masks in training is the output in testing; inverted dropout pays for it in
    training and leaves testing alone. Srivastava et al., "Dropout", JMLR 2014.
    """
    x = check.floats("x", x)
    p = check.number("dropout_param['p']", check.required("dropout_param", dropout_param, "p"), 0, 1, open_low=True)
    mode = check.one_of("dropout_param['mode']", dropout_param.get("mode"), ("train", "test"))
    kind = check.one_of("dropout_param['kind']", dropout_param.get("kind", "inverted"), ("inverted", "vanilla"))
    if mode == "test":
        mask = None
        out = x if kind == "inverted" else x * p
    else:
        mask = (_generator(dropout_param).rand(*x.shape) < p).astype(x.dtype)
        if kind == "inverted":
            mask /= p
        out = x * mask
    return out, ({"p": p, "mode": mode, "kind": kind}, mask)


def dropout_backward(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Gradient of dropout: out = x * mask, so dx = dout * mask; in testing, dout or p * dout."""
    param, mask = cache
    if mask is None:
        dout = check.floats("dout", dout)
        return dout if param["kind"] == "inverted" else dout * param["p"]
    return check.like("dout", dout, mask, mask.shape) * mask


def _rows(x: np.ndarray) -> np.ndarray:
    # not reshape(len(x), -1), which fails on an empty batch
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _generator(dropout_param: Mapping[str, Any]) -> Any:
    seed = dropout_param.get("seed")
    if seed is not None:
        return np.random.RandomState(seed)
    rng = dropout_param.get("rng")
    return np.random if rng is None else rng
