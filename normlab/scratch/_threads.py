"""Shares a compiled kernel among plain Python threads, which is safe from any thread and after fork.

A kernel takes a range of independent units and releases the interpreter lock; how the units are cut changes no result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

_GRAIN = 1 << 17  # multiplications below which a second thread costs more than it saves


def num_threads() -> int:
    """Threads to use: torch's setting where torch is loaded, else OMP_NUM_THREADS, else one a core."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else len(os.sched_getaffinity(0))


def split(kernel: Callable[..., None], units: int, work: int, *args: Any) -> None:
    """Run `kernel(first, last, *args)` over [0, units) on all threads; `work` is how many multiplications it has."""
    threads = min(num_threads(), units, 1 + work // _GRAIN)
    if threads <= 1:
        kernel(0, units, *args)
        return
    bounds = [units * t // threads for t in range(threads + 1)]
    others = [_pool(threads).submit(kernel, bounds[t], bounds[t + 1], *args) for t in range(1, threads)]
    kernel(0, bounds[1], *args)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="normlab")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process inherits the pools but not their threads
