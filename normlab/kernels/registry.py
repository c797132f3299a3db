"""Which backend serves what: the table of backends, the choice among them, and how it is seen and overruled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from normlab.errors import UsageError
from normlab.kernels.contract import POSITIONS, Backend, Planes, Positions, Reason
from normlab.norms.family import NormEntry


class BackendWarning(UserWarning):
    """A slower backend serves because the fast one does not take this input; given once per reason."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """A backend in the table: a folder (the name of a package), or an object with the three files' contents."""

    name: str
    folder: str | Backend
    devices: tuple[str, ...] = ()

    @cached_property
    def backend(self) -> Backend:
        return import_module(f"{self.folder}.backend") if isinstance(self.folder, str) else self.folder

    @cached_property
    def planes(self) -> Planes:
        planes: Planes = self._part("planes")
        return planes

    @cached_property
    def positions(self) -> Positions:
        positions: Positions = self._part("positions")
        return positions

    # their own ways into torch's graph, if they have one: to look for a missing name at each call takes too long

    @cached_property
    def normalize(self) -> Callable[..., Any] | None:
        return getattr(self.planes, "normalize", None)

    @cached_property
    def normalize_positions(self) -> Callable[..., Any] | None:
        return getattr(self.positions, "normalize", None)

    def _part(self, name: str) -> Any:
        return import_module(f"{self.folder}.{name}") if isinstance(self.folder, str) else getattr(self.folder, name)


# the last one that names a device, and can serve, is the one that does; `reference` is for what nobody else can
_BACKENDS: dict[str, _Entry] = {}
_chosen: dict[Any, tuple[_Entry, Reason | None]] = {}  # by dtype, device and norm
_warned: set[str] = set()
_forced: ContextVar[str | None] = ContextVar("normlab_backend", default=None)


def register(name: str, backend: str | Backend, devices: tuple[str, ...] = ()) -> None:
    """Add a backend, or put another one in its place.

    `backend` is the name of a package, or an object, with what `normlab.kernels.contract` asks for. It is chosen for
    the types of device that it names ("cpu", "cuda") before those registered earlier; without any only by
    `use_backend`.
    """
    _BACKENDS.pop(name, None)
    _BACKENDS[name] = _Entry(name, backend, devices)
    forget_choices()


def forget_choices() -> None:
    """Ask the backends again what they serve, at the next call."""
    _chosen.clear()


def backend_names() -> tuple[str, ...]:
    """Names of all backends, in the order in which they were registered."""
    return tuple(_BACKENDS)


def backend_for(x: Any, entry: NormEntry | None = None) -> str:
    """Name of the backend that serves this array or tensor: "numba_cpu", "native_cpu", "triton_gpu" or "reference".

    `entry` is the norm, `normlab.kernels.contract.POSITIONS`, or None for any norm of the family.
    """
    forced = _forced.get()
    return _choice(x, entry)[0].name if forced is None else forced


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, this thread's normalizations run on the named backend. Raises UsageError if unknown."""
    if name not in _BACKENDS:
        raise UsageError(f"use_backend: {name!r} is not a backend; expected one of: {', '.join(_BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def planes_for(x: Any, entry: NormEntry | None = None) -> Planes:
    """The kernels for a norm of the family on x.

    Gives a `BackendWarning`, once per reason, where they are not those of the fast backend for x's device. Raises
    UsageError where the backend of `use_backend` cannot serve x.
    """
    return _serving_entry(x, entry).planes


def differentiable_for(x: Any, entry: NormEntry) -> tuple[Planes, Callable[..., Any] | None]:
    """As `planes_for`, and their function `normalize`, if they have one."""
    serving = _serving_entry(x, entry)
    return serving.planes, serving.normalize


def positions_for(x: Any) -> Positions:
    """As `planes_for`: the kernels for statistics per position."""
    return _serving_entry(x, POSITIONS).positions


def differentiable_positions_for(x: Any) -> Callable[..., Any] | None:
    """The function `normalize` of the kernels that `positions_for` returns, if they have one."""
    return _serving_entry(x, POSITIONS).normalize_positions


def _serving_entry(x: Any, entry: NormEntry | None) -> _Entry:
    forced = _forced.get()
    if forced is None:
        chosen, reason = _choice(x, entry)
        if reason is not None and reason.what not in _warned:
            _warned.add(reason.what)
            message = f"normlab: {reason.what} is served by the slower {chosen.name!r} backend"
            warnings.warn(message, BackendWarning, stacklevel=5)
        return chosen
    named = _BACKENDS[forced]
    reason = named.backend.serves(x, entry)
    if reason is not None:
        raise UsageError(f"use_backend: {forced!r} cannot serve {reason.what}; {reason.remedy}")
    return named


def _choice(x: Any, entry: NormEntry | None) -> tuple[_Entry, Reason | None]:
    """(backend, why it is not the fast one for x's device or None)."""
    device = getattr(x, "device", "cpu")
    key = x.dtype, device, entry
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = _first_that_serves(x, str(device), entry)
    return found


def _first_that_serves(x: Any, device: str, entry: NormEntry | None) -> tuple[_Entry, Reason | None]:
    reasons = []
    for candidate in reversed(_BACKENDS.values()):
        if device.partition(":")[0] in candidate.devices:
            reason = candidate.backend.serves(x, entry)
            if reason is None:
                return candidate, None
            reasons.append(reason)
    return _BACKENDS["reference"], reasons[0] if reasons else Reason(f"a tensor on device {device!r}")


register("reference", "normlab.kernels.reference")
register("numba_cpu", "normlab.kernels.cpu", devices=("cpu",))
register("native_cpu", "normlab.kernels.native", devices=("cpu",))
register("triton_gpu", "normlab.kernels.gpu", devices=("cuda",))
