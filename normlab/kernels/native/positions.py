"""Statistics per position: the kernels of `normlab.kernels.cpu.positions`, and a way to them that leads through C++."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from normlab.kernels.cpu import _position_job as job
from normlab.kernels.cpu import positions
from normlab.kernels.cpu.positions import (
    KEPT_NUMBERS,
    backward,
    forward,
    kept_dtype,
    parameter_dtype,
    prepare_call,
    restored,
)
from normlab.kernels.native import calls
from normlab.kernels.runtime.job import UNITS
from normlab.kernels.runtime.openmp import parallel
from normlab.norms.grid import library

__all__ = ["KEPT_NUMBERS", "backward", "forward", "kept_dtype", "normalize", "parameter_dtype", "restored"]

_KEPT = 256  # plans
_PLACES = (
    "X", "G", "Y", "KEPT", "WEIGHT", "BIAS", "SUMS", "D_WEIGHT", "D_BIAS", "X_OUTER", "X_STEP", "G_OUTER", "G_STEP",
    "EPS",
)  # fmt: skip

_part = calls.compiled.positions
_part.set_up({**{name: getattr(job, name) for name in _PLACES}, "UNITS": UNITS})
_normalize: Callable[..., Any] = _part.normalize
_plans: dict[Any, Any] = {}


def normalize(
    x: Any, weight: Any, bias: Any, size: int, eps: float, centred: bool, last: bool, pull_back: Callable[..., Any]
) -> Any:
    """weight * h + bias as `normlab.kernels.contract` says, or None where Python has to call the kernels."""
    key = x.shape, x.dtype, size, centred, last, weight is None, bias is None
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= _KEPT:
            _plans.clear()
        plan = _plans[key] = _plan(x, size, centred, last, weight is None, bias is None, pull_back)
    return _normalize(plan, x, weight, bias, eps)


def _plan(
    x: Any, size: int, centred: bool, last: bool, no_weight: bool, no_bias: bool, pull_back: Callable[..., Any]
) -> Any:
    dtype, elements = x.dtype, x.numel()
    inner = 1 if size else elements // (x.shape[0] * x.shape[1])
    each = size or x.shape[1]
    count = elements // each
    columns = inner > 1 and not last
    sizes = (x.shape[0], each, inner) if columns else (count, each)
    kept = calls.Kept()

    def prepare(backward: bool, learns: bool) -> tuple[array[int], int]:
        return kept.addressed(*prepare_call(sizes, dtype, centred, backward, learns))

    real = parameter_dtype(x)
    return _part.make_plan(
        prepare,
        _part.Form.COLUMNS if columns else _part.Form.LAST if last else _part.Form.ROWS,
        count,
        each,
        _constant(1.0, each if no_weight else 0, real),
        _constant(0.0, each if no_bias else 0, real),
        partial(pull_back, positions, (size, centred, last)),
        parallel(),
    )


@lru_cache(maxsize=8)
def _constant(value: float, size: int, dtype: Any) -> Any:
    """A weight of ones, or a bias of zeros; plans share it."""
    torch: Any = library(dtype)
    return torch.full((size,), value, dtype=dtype, device="cpu")  # whatever the default is
