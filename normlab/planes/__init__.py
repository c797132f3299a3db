"""The code that touches whole tensors, and the choice of who runs it.

Four kernels carry the family. x, g and y are planes (N, C, S); the rest are grids that broadcast to (N, C):

| kernel | answers |
|---|---|
| moments(x) | mean and biased variance of each plane, centred: never E[x^2] - E[x]^2 |
| affine(x, scale, center, shift) | y = scale * (x - center) + shift |
| dots(g, x, center) | the sums over each plane of g and of g * (x - center) |
| combine(g, x, center, a, b, c) | dx = a * g + b * (x - center) + c |

A backend is a module that runs them, with the norm's grid function in between, forward and backward:

    forward(recipe, layout, x, params, running, eps, out, act, residual, update) -> saved
    backward(saved, layout, x, g, out, params, residual, to_residual) -> gradients of the parameters, in their order

    numbers(recipe, sizes) -> how many numbers `saved.memory` has, for N, C and S
    restored(recipe, layout, x, params, running, eps, act, memory) -> saved, again

The last two are for `normlab.operators`, where what is kept for the backward pass travels as tensors: `saved.memory` is
all that it holds beside x, the parameters and the running statistics.

Fused with them are z = y + residual and act(z) (`normlab.activations`): the kernels of the backward pass then work on
dz = g * act'(z), which with a residual is also its gradient and is written to `to_residual`. `update` is (running mean,
running variance, momentum), updated in place with the batch's where the norm pooled over it.

`saved.batch` and `saved.moments` are (mean, biased variance, count) of the batch and of the planes, or None where the
norm had no use for them. Tensors are (N, C, *), dense in `layout`, which shows them as planes.

| backend | serves |
|---|---|
| `numba_cpu` | NumPy arrays and CPU tensors: float32 and float64 without a copy, float16 and bfloat16 in float32 |
| `reference` | everything else, and everything when asked: the specification in array arithmetic |

The choice is visible (`backend_for`) and can be overruled (`use_backend`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from normlab.activations import Activation
from normlab.application import Recipe
from normlab.errors import UsageError
from normlab.layout import Layout

BACKENDS = ("numba_cpu", "reference")
_forced: ContextVar[str | None] = ContextVar("normlab_backend", default=None)
_told: set[str] = set()


class BackendWarning(UserWarning):
    """A slower backend serves because the fast one does not take this input; given once per reason."""


class Backend(Protocol):
    """What a backend module offers; see the module docstring for the contract."""

    def forward(
        self, recipe: Recipe, layout: Layout, x: Any, params: Any, running: Any, eps: float, out: Any,
        act: Activation | None = None, residual: Any = None, update: Any = None,
    ) -> Any: ...  # fmt: skip

    def backward(
        self, saved: Any, layout: Layout, x: Any, g: Any, out: Any, params: Any, residual: Any = None,
        to_residual: Any = None,
    ) -> list[Any]: ...  # fmt: skip

    def numbers(self, recipe: Recipe, sizes: tuple[int, int, int]) -> int: ...

    def restored(
        self, recipe: Recipe, layout: Layout, x: Any, params: Any, running: Any, eps: float,
        act: Activation | None, memory: Any,
    ) -> Any: ...  # fmt: skip


def backend_for(x: Any) -> str:
    """Name of the backend that serves this array or tensor: "numba_cpu" or "reference"."""
    forced = _forced.get()
    if forced is not None:
        return forced
    return "numba_cpu" if _unfit_for_numba(x) is None else "reference"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, this thread's normalizations run on the named backend. Raises UsageError if unknown."""
    if name not in BACKENDS:
        raise UsageError(f"use_backend: {name!r} is not a backend; expected one of: {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def serving(x: Any) -> Backend:
    """The backend module that serves x; says once, per reason, when that is not the fast backend of its device."""
    name = backend_for(x)
    if name == "numba_cpu" and _forced.get() is None:
        return _module("normlab.planes.numba_cpu")
    reason = _unfit_for_numba(x)
    if reason is not None:
        if name == "numba_cpu":
            raise UsageError(f"use_backend: 'numba_cpu' cannot serve {reason}; use 'reference'")
        if _forced.get() is None and reason not in _told:
            _told.add(reason)
            warnings.warn(f"normlab: {reason} is served by the slower 'reference' backend", BackendWarning, 4)
    return _module(f"normlab.planes.{name}")


def _unfit_for_numba(x: Any) -> str | None:
    """Why Numba's kernels do not take x, or None."""
    return _reason(x.dtype, str(getattr(x, "device", "cpu")))


@cache
def _reason(dtype: Any, device: str) -> str | None:
    if not device.startswith("cpu"):
        return f"a tensor on device {device!r}"
    name = str(dtype).removeprefix("torch.")
    return None if name in ("float32", "float64", "float16", "bfloat16") else f"dtype {name}"


@cache
def _module(name: str) -> Any:
    return import_module(name)
