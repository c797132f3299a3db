"""The OpenMP library whose threads torch computes with, and which can as well compute for us.

Its threads wait for work awake for a while, so that a job reaches them in microseconds, and a second set of threads
would have to share the cores with them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_NAMES = ("libgomp", "libiomp5")
_found: tuple[int, int] | None = None


def parallel() -> tuple[int, int]:
    """Addresses of `GOMP_parallel` and `omp_get_thread_num` in the library that torch has loaded.

    (0, 0) where there is none, or after a fork: a child process inherits the library's state but not its threads, and
    would wait for them for ever.
    """
    global _found
    if _found is None:
        if "torch" not in sys.modules:
            return 0, 0  # it may still come
        _found = _find()
    return _found


def _find() -> tuple[int, int]:
    candidates: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[2]
            if path.rpartition("/")[2].startswith(_NAMES):
                candidates.add("/" + path)
    with_torch = {path for path in candidates if "/torch" in path}
    chosen = with_torch or candidates
    if len(chosen) != 1:  # none, or it is not known which one is torch's
        return 0, 0
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(chosen.pop(), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return _address(library.GOMP_parallel), _address(library.omp_get_thread_num)
    return 0, 0


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _forget() -> None:
    global _found
    _found = 0, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
