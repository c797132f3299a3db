"""What the operating system says, with a value in its place where a system does not have the name."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any

# in the environment of a process: it compiles without a word and without a second process
COMPILE_ALONE = {"NORMLAB_COMPILING": "alone"}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pause() -> int:
    """Address of the C function `int f(void)` that leaves the core to another thread for a moment, or 0."""
    with suppress(OSError, AttributeError, TypeError):
        if sys.platform == "win32":
            return address(ctypes.WinDLL("kernel32").SwitchToThread)
        return address(ctypes.CDLL(None).sched_yield)
    return 0


def address(function: Any) -> int:
    """Where a function of a C library lies."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0
