"""How kernels are compiled, and that what is cached on disk belongs to the source that is here.

Numba recompiles a function when its own file has changed, but not when a function that it calls has changed in another
file. So compiled code is thrown away whenever any source that kernels are made of is not the one it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numba import cfunc, njit
from numba.core.compiler import Compiler

from normlab.kernels.runtime.beside import compiling
from normlab.kernels.runtime.parts import Joint, Part
from normlab.kernels.runtime.sources import KERNELS, RUNTIME, digest, sources_of

Function = TypeVar("Function", bound=Callable[..., Any])


class _Decorator(Protocol):
    """Numba's decorator has no types: the compiled function is called as the one that it is made of."""

    def __call__(self, function: Function, /) -> Function: ...


class _Whole(Compiler):
    """All of Numba's steps: for what has an address, or is called by Python."""

    def compile_extra(self, func: Any) -> Any:
        parent: Any = super()
        with compiling.one():
            return parent.compile_extra(func)


# sums may be reordered, so that they vectorize; NaN and infinity keep their meaning
_OPTIONS: Any = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_INNER: Any = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# for functions that only compiled code calls, and that are compiled into what is called: nothing of them is on disk
compiled: _Decorator = njit(pipeline_class=Part, **_OPTIONS, **_INNER)
# those of them that have no loops over elements, so that nothing is lost where they are optimized in their caller alone
joining: _Decorator = njit(pipeline_class=Joint, **_OPTIONS, **_INNER)
# for functions that Python calls
called: _Decorator = njit(nogil=True, cache=True, pipeline_class=_Whole, **_OPTIONS)


def address_of(function: Any, signature: Any) -> int:
    """Compile a function as a C function, or load what is on disk, and return its address."""
    made: Any = cfunc(signature, cache=True, pipeline_class=_Whole, **_OPTIONS)(function)
    alive.append(made)
    return int(made.address)


alive: list[Any] = []  # compiled code lives as long as its object


def discard_stale(place: Path, sources: Iterable[Path]) -> None:
    """Remove the compiled code of the sources in the folder `place` if it was made from other sources than these."""
    made_from = digest(sources)
    folder = cache_folder(place)
    stamp = folder / "normlab.sources"
    with suppress(OSError):  # a read-only or vanished cache only costs time
        if stamp.is_file() and stamp.read_text() == made_from:
            return
        for index in folder.glob("*.nbi"):
            index.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(made_from)


def cache_folder(place: Path) -> Path:
    """Where Numba keeps what is compiled of the sources in a folder: beside them, or in NUMBA_CACHE_DIR."""
    names: dict[str, Any] = {}
    exec(compile("def nothing(): pass", str(place / "__init__.py"), "exec"), names)  # a function of that folder
    dispatcher: Any = njit(cache=True)(names["nothing"])
    return Path(dispatcher.stats.cache_path)


for _place in (RUNTIME, KERNELS / "cpu", KERNELS / "convolution"):
    discard_stale(_place, sources_of(_place))
