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

from normlab.kernels.runtime.system import address

_NAMES = ("libgomp", "libiomp5")
_PROCESS = os.getpid()
_found: tuple[int, int] | None = None


def parallel() -> tuple[int, int]:
    """Addresses of `GOMP_parallel` and `omp_get_thread_num` in the library that torch has loaded.

    (0, 0) where there is none, or after a fork: a child process inherits the library's state but not its threads, and
    would wait for them for ever.
    """
    global _found
    if os.getpid() != _PROCESS:
        return 0, 0
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
        return address(library.GOMP_parallel), address(library.omp_get_thread_num)
    return 0, 0
