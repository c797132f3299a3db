"""Kernels that came compiled, in a wheel: a shared library for each of some instruction sets.

What is used is the library of the largest set that this processor has all of, if it is whole and was made from the
sources that are here. Any other kernel is compiled. NORMLAB_OBJECTS names another folder than the package's own; with
"" there is none. `wheels.objects` makes the libraries, which need neither Numba nor a certain Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from normlab.kernels.runtime import sources
from normlab.kernels.runtime.system import address

FOLDER = sources.KERNELS / "objects"
CONTENTS = "objects.json"  # {"sources": digest, "libraries": {instruction set: digest of SET.so}}

# the psABI's levels, the largest first, with the names that Linux has for what each has beyond the one before
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
SETS: dict[str, set[str]] = {
    "x86-64-v4": {*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
}


def find(symbol: str) -> int | None:
    """The address of a kernel, or None where it did not come compiled."""
    library = _library()
    if library is not None:
        with suppress(AttributeError):
            return address(library[symbol])
    return None


def origin() -> str:
    """Where kernels come from: the instruction set of the library that is used, or "compiled here"."""
    library = _library()
    return "compiled here" if library is None else Path(library._name).stem


@cache
def _library() -> Any:
    folder = os.environ.get("NORMLAB_OBJECTS")
    return None if folder == "" else library_in(Path(folder) if folder else FOLDER, processor())


def library_in(folder: Path, has: set[str]) -> Any:
    """The library of a folder that is for a processor with these instructions, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        contents = json.loads((folder / CONTENTS).read_text())
        if contents["sources"] == sources.digest(sources.sources_of(sources.KERNELS / "cpu")):
            fitting = [name for name, needs in SETS.items() if needs <= has and name in contents["libraries"]]
            path = folder / f"{fitting[0]}.so" if fitting else None
            if path and hashlib.sha256(path.read_bytes()).hexdigest() == contents["libraries"][fitting[0]]:
                return ctypes.CDLL(str(path.absolute()))
    return None


def processor() -> set[str]:
    """The instructions that processor and system have, by Linux's names; none elsewhere."""
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        for line in file:  # as far as the first core's: there may be hundreds
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()
