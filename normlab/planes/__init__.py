"""The kernels that touch whole tensors, and the choice of who runs them.

A backend is a module with four functions. `x`, `g` and `out` are (N, C, S) views in either memory order
(S contiguous: channels-first; C contiguous: channels-last); `center`, `scale`, `shift`, `a`, `b`, `c` are grids
that broadcast to (N, C), in at least the precision of x.

| kernel | reads | answers |
|---|---|---|
| `moments(x)` | x | mean and biased variance of each plane, (N, C), centred: never E[x^2] - E[x]^2 |
| `affine(x, scale, center, shift, out)` | x | out = scale * (x - center) + shift |
| `dots(g, x, center)` | g, x | the sums over each plane of g and of g * (x - center), (N, C) |
| `combine(g, x, center, a, b, c, out)` | g, x | out = a * g + b * (x - center) + c |

`b` of `combine` may be None (nothing depends on the moments): then x is not read and c is zero.

| backend | serves |
|---|---|
| `numba_cpu` | NumPy arrays and CPU tensors, float32 and float64, without a copy |
| `reference` | everything else, and everything when asked: the specification in array arithmetic |

The choice is visible (`backend_for`) and can be overruled (`use_backend`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Protocol

from normlab.errors import UsageError

BACKENDS = ("numba_cpu", "reference")
_forced: ContextVar[str | None] = ContextVar("normlab_backend", default=None)
_told: set[str] = set()


class BackendWarning(UserWarning):
    """A slower backend serves because the fast one does not take this input; given once per reason."""


class Kernels(Protocol):
    """What a backend module offers; see the module docstring for the contract."""

    def moments(self, x: Any) -> tuple[Any, Any]: ...
    def affine(self, x: Any, scale: Any, center: Any, shift: Any, out: Any) -> None: ...
    def dots(self, g: Any, x: Any, center: Any) -> tuple[Any, Any]: ...
    def combine(self, g: Any, x: Any, center: Any, a: Any, b: Any, c: Any, out: Any) -> None: ...


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


def kernels_for(x: Any) -> Kernels:
    """The kernels that serve x; says once, per reason, when that is not the fast backend of its device."""
    name = backend_for(x)
    reason = _unfit_for_numba(x)
    if reason is not None:
        if name == "numba_cpu":
            raise UsageError(f"use_backend: 'numba_cpu' cannot serve {reason}; use 'reference'")
        if _forced.get() is None and reason not in _told:
            _told.add(reason)
            warnings.warn(f"normlab: {reason} is served by the slower 'reference' backend", BackendWarning, 4)
    return import_module(f"normlab.planes.{name}")  # type: ignore[return-value]


def _unfit_for_numba(x: Any) -> str | None:
    """Why Numba's kernels do not take x, or None."""
    device = getattr(x, "device", None)
    kind = getattr(device, "type", "cpu")
    if kind != "cpu":
        return f"a tensor on device {kind!r}"
    dtype = str(x.dtype).removeprefix("torch.")
    return None if dtype in ("float32", "float64") else f"dtype {dtype}"
