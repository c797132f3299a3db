"""Statistics per position: normalization over the last dimension (transformers), or over the channels (ConvNeXt).

Each position has a mean and a variance of its own, and there is a weight and a bias for each element that they are
taken over. So nothing here is a map per plane (`normlab.norms`), and there is no grid: one kernel reads a position,
normalizes it and writes it. In memory a position is a row, or, where the channels come first, a column:

    x (R, D)      D elements one after the other: the last dimensions of anything, or channels-last
    x (N, C, S)   C elements, S apart: channels-first, normalized as it lies, without being permuted

Which backend serves is decided as for planes (`normlab.kernels.registry`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.kernels.contract import Positions
from normlab.kernels.layout import allocated, as_stored, ones
from normlab.kernels.registry import positions_for
from normlab.norms.grid import Array


@dataclass(slots=True)
class Cache:
    """What the backward pass needs beside x and weight."""

    backend: Positions
    dtype: Any  # of parameters and their gradients, for this backend
    saved: Any


def forward(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, centred: bool = True
) -> tuple[Array, Cache]:
    """Normalize x (R, D) over D, or x (N, C, S) over C; returns (y, cache), y contiguous and of x's dtype.

        centred:      y = weight * (x - mean) / sqrt(var + eps) + bias
        not centred:  y = weight * x / sqrt(mean(x^2) + eps) + bias

    weight and bias are (D,) or (C,), or None. x is a NumPy array or a torch tensor without an autograd history (for
    others see `normlab.layers.positions`), float, contiguous along its last dimension. Raises ValueError if weight or
    bias is of another length.
    """
    _check_lengths(x, weight, bias)
    backend = positions_for(x)
    dtype = backend.parameter_dtype(x)
    y = _empty(x, x.shape, x.dtype)
    saved = None
    if 0 not in x.shape:
        saved = backend.forward(x, _flat_parameter(weight, dtype), _flat_parameter(bias, dtype), eps, centred, y)
    return y, Cache(backend, dtype, saved)


def backward(
    g: Array, x: Array, weight: Array | None, cache: Cache, learns: tuple[bool, bool] = (True, True)
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of sum(g * y): (dx, d_weight, d_bias); of weight and bias where `learns` says so, or None.

    Raises ValueError if g's shape or dtype is not x's, or weight is of another length.
    """
    if g.shape != x.shape or g.dtype != x.dtype:
        raise ValueError(
            f"g: expected the output's shape {tuple(x.shape)} and {x.dtype}, got shape {tuple(g.shape)} and {g.dtype}"
        )
    _check_lengths(x, weight, None)
    dtype = cache.dtype
    dx = _empty(x, x.shape, x.dtype)
    d_weight, d_bias = (_empty(x, x.shape[1], dtype) if wanted else None for wanted in learns)
    if cache.saved is None:
        for gradient in (d_weight, d_bias):
            if gradient is not None:
                gradient[...] = 0
    else:
        cache.backend.backward(cache.saved, x, _flat_parameter(weight, dtype), g, dx, d_weight, d_bias)
    return dx, d_weight, d_bias


def restored(x: Array, kept: Array, centred: bool) -> Cache:
    """The cache that `forward` returned for the same x, from its `saved.kept`."""
    backend = positions_for(x)
    dtype = backend.parameter_dtype(x)
    expected = backend.KEPT_NUMBERS * x.shape[0] * (x.shape[2] if len(x.shape) == 3 else 1)
    if len(kept) != expected:
        raise RuntimeError(
            f"the backward pass keeps {expected} numbers and got {len(kept)}: "
            "it runs on another backend than the forward pass; let normlab.use_backend enclose both"
        )
    return Cache(backend, dtype, None if 0 in x.shape else backend.restored(x, kept, centred))


def numbers(x: Array) -> tuple[int, Any, Any]:
    """How many numbers the backend keeps of a position, the dtype of parameters for it, and that of what it keeps."""
    backend = positions_for(x)
    dtype = backend.parameter_dtype(x)
    return backend.KEPT_NUMBERS, dtype, backend.kept_dtype(x, dtype)


def precompile(dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Compile the CPU kernels now (some seconds a dtype, once: they are kept on disk), not at the first call."""
    for dtype in dtypes:
        row = ones(2, 1, dtype)
        for x in (ones(2, 2, dtype), ones(2, 3, dtype)):  # rows, and tiles of columns
            _, kept = forward(x, row, row)
            backward(x, x, row, kept)


def _check_lengths(x: Array, weight: Array | None, bias: Array | None) -> None:
    """Raise ValueError for a weight or bias of another length: kernels read a number for each element of a position."""
    size = x.shape[1]
    if weight is not None and math.prod(weight.shape) != size:
        raise _wrong_length("weight", weight, size)
    if bias is not None and math.prod(bias.shape) != size:
        raise _wrong_length("bias", bias, size)


def _wrong_length(name: str, v: Array, size: int) -> ValueError:
    return ValueError(
        f"{name}: expected {size} numbers, as many as a position has elements, got shape {tuple(v.shape)}"
    )


def _flat_parameter(parameter: Array | None, dtype: Any) -> Array | None:
    """A parameter as a backend takes it: flat, contiguous, of this dtype."""
    if parameter is None:
        return None
    if isinstance(parameter, np.ndarray):
        return np.ascontiguousarray(parameter, dtype).reshape(-1)
    parameter = as_stored(parameter)
    if parameter.dtype != dtype:
        parameter = allocated(parameter).to(dtype)
    if not parameter.is_contiguous():
        parameter = allocated(parameter).contiguous()
    return parameter if parameter.dim() == 1 else parameter.view(-1)


def _empty(x: Array, shape: Any, dtype: Any) -> Array:
    if isinstance(x, np.ndarray):
        return np.empty(shape, dtype)
    return x.new_empty(shape) if x.dtype == dtype else x.new_empty(shape, dtype=dtype)
