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

The last two are for `normlab.layers.operators`, where what is kept for the backward pass travels as tensors:
`saved.memory` is all that it holds beside x, the parameters and the running statistics.

Fused with them are z = y + residual and act(z) (`normlab.kernels.activations`): the kernels of the backward pass then
work on dz = g * act'(z), which with a residual is also its gradient and is written to `to_residual`. `update` is
(running mean, running variance, momentum), updated in place with the batch's where the norm pooled over it.

`saved.batch` and `saved.moments` are (mean, biased variance, count) of the batch and of the planes, or None where the
norm had no use for them. Tensors are (N, C, *), dense in `layout`, which shows them as planes.

The momentum may be a tensor of one number on the device of the others; `triton_gpu` never waits for the device.

| backend | serves |
|---|---|
| `numba_cpu` | NumPy arrays and CPU tensors: float32 and float64 without a copy, float16 and bfloat16 in float32 |
| `triton_gpu` | CUDA tensors of float32, float64, bfloat16 and float16, where triton is installed, without a copy |
| `reference` | everything else, and everything when asked: the specification in array arithmetic |

With TRITON_INTERPRET=1 in the environment of a process, `triton_gpu` serves CPU tensors too, if asked (for tests).

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

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.kernels.layout import Layout
from normlab.norms.application import Recipe

_FOLDERS = {"numba_cpu": "cpu", "triton_gpu": "gpu", "reference": "reference"}  # name of a backend -> its folder
BACKENDS = tuple(_FOLDERS)
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
    """Name of the backend that serves this array or tensor: "numba_cpu", "triton_gpu" or "reference"."""
    return _forced.get() or _choice(x.dtype, getattr(x, "device", "cpu"))[0]


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
    """The backend module that serves x; says once, per reason, when that is not the fast backend of its device.

    Raises UsageError where the backend of `use_backend` cannot serve x.
    """
    forced = _forced.get()
    if forced is None:
        module, reason = _chosen(x.dtype, getattr(x, "device", "cpu"))
        if reason is not None and reason not in _told:
            _told.add(reason)
            warnings.warn(f"normlab: {reason} is served by the slower 'reference' backend", BackendWarning, 4)
        return module
    if forced in _UNFIT and (unfit := _UNFIT[forced](x)) is not None:
        raise UsageError(f"use_backend: {forced!r} cannot serve {unfit}")
    return _module(forced)


@cache
def _chosen(dtype: Any, device: Any) -> tuple[Backend, str | None]:
    """(module of the backend, why it is not the fast one of its device or None)."""
    name, reason = _choice(dtype, device)
    return _module(name), reason


@cache
def _choice(dtype: Any, device: Any) -> tuple[str, str | None]:
    """(backend, why it is not the fast one of its device or None)."""
    device, name = str(device), str(dtype).removeprefix("torch.")
    if device.startswith("cpu"):
        return ("numba_cpu", None) if name in _DTYPES else ("reference", f"dtype {name}")
    if not device.startswith("cuda"):
        return "reference", f"a tensor on device {device!r}"
    if name not in _DTYPES:
        return "reference", f"dtype {name} on device {device!r}"
    missing = _no_triton()
    return ("triton_gpu", None) if missing is None else ("reference", f"a tensor on device {device!r}, as {missing},")


def _unfit_for_numba(x: Any) -> str | None:
    """Why Numba's kernels do not take x, with the fix, or None."""
    device, name = str(getattr(x, "device", "cpu")), str(x.dtype).removeprefix("torch.")
    if not device.startswith("cpu"):
        return f"a tensor on device {device!r}; use 'reference'"
    return None if name in _DTYPES else f"dtype {name}; use 'reference'"


def _unfit_for_triton(x: Any) -> str | None:
    """Why Triton's kernels do not take x, with the fix, or None."""
    device, name = x.device, str(x.dtype).removeprefix("torch.")
    if isinstance(device, str):
        return "a NumPy array; use 'numba_cpu' or 'reference'"
    if name not in _DTYPES:
        return f"dtype {name}; expected one of: {', '.join(_DTYPES)}"
    missing = _no_triton()
    if missing is not None:
        return f"anything, as {missing}; install it, or use 'reference'"
    if device.type == "cuda" or (device.type == "cpu" and _module("triton_gpu").INTERPRETED):
        return None
    return (
        f"a tensor on device {str(device)!r}; move it to a CUDA device, or set TRITON_INTERPRET=1 in the environment "
        "before Python starts, which runs the kernels on CPU tensors, slowly"
    )


@cache
def _no_triton() -> str | None:
    """Why triton cannot be used here, or None."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return "triton is not installed" if absent else f"triton cannot be imported ({error})"
    return None


@cache
def _module(name: str) -> Any:
    return import_module(f"normlab.kernels.{_FOLDERS[name]}.planes")


_DTYPES = ("float32", "float64", "float16", "bfloat16")  # of both fast backends
_UNFIT = {"numba_cpu": _unfit_for_numba, "triton_gpu": _unfit_for_triton}
