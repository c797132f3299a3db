"""Splits a compiled kernel over threads; the threads are ours, so that it is safe from any thread and after fork.

Numba's own threading layers are either not safe to enter from two threads at once (workqueue) or not safe
after fork (OpenMP). Kernels here take a range of work units and release the interpreter lock, so plain Python
threads serve. How the work is cut never changes a result: units are independent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_GRAIN = 1 << 15  # elements below which a second thread costs more than it saves
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def num_threads() -> int:
    """Threads that the kernels use: torch's setting where torch is loaded, else OMP_NUM_THREADS, else the cores."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else len(os.sched_getaffinity(0))


def split(kernel: Callable[..., None], units: int, elements: int, *args: Any) -> None:
    """Run `kernel(first, last, *args)` over [0, units) on all threads; `elements` is the size of the work."""
    threads = min(num_threads(), units, 1 + elements // _GRAIN)
    if threads <= 1:
        kernel(0, units, *args)
        return
    bounds = [units * t // threads for t in range(threads + 1)]
    pool = _threads(threads - 1)
    others = [pool.submit(kernel, bounds[t], bounds[t + 1], *args) for t in range(1, threads)]
    kernel(0, bounds[1], *args)
    for other in others:
        other.result()


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="normlab"), count
    return _pool


def _forget() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0  # a child process inherits the object but not the threads


os.register_at_fork(after_in_child=_forget)
