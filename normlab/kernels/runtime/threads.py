"""Shares a compiled kernel of any arguments among Python threads, which release the interpreter lock while in it.

Numba's own threading layers are either not safe to enter from two threads at once (workqueue) or not safe after
fork (OpenMP). Here a job is a number of independent units. The caller starts on them at once, and every helper
that wakes up takes the next unit: waking one takes longer than many units do, and nobody waits for it. Who does a
unit never changes its result. For kernels so short that the interpreter lock counts, see
`normlab.kernels.runtime.team`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numba import njit

from normlab.kernels.runtime.counters import DONE, SIZE, fetch_add, next_unit, unit_done

__all__ = ["GRAIN", "next_unit", "num_threads", "share", "unit_done"]

GRAIN = 1 << 16  # elements below which a second thread costs more than it saves

_jobs: SimpleQueue = SimpleQueue()
_helpers = 0
_lock = threading.Lock()


def num_threads() -> int:
    """Threads that the kernels use: torch's setting where torch is loaded, else OMP_NUM_THREADS, else the cores."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else len(os.sched_getaffinity(0))


def share(kernel: Callable[..., None], units: int, elements: int, *args: Any) -> None:
    """Run `kernel(counters, units, *args)`, which takes units until none is left; `elements` sizes the work."""
    counters = np.zeros(SIZE, np.int64)
    helpers = min(num_threads(), units, 1 + elements // GRAIN) - 1
    if helpers > 0:
        _summon(helpers)
        for _ in range(helpers):
            _jobs.put((kernel, (counters, units, *args)))
    kernel(counters, units, *args)
    if helpers > 0:
        _wait(counters, units)


@njit(nogil=True, cache=True)
def _wait(counters: Any, units: int) -> None:
    while fetch_add(counters, DONE, 0) < units:
        pass  # some helper is in its last unit


def _help(jobs: SimpleQueue) -> None:
    while True:
        kernel, args = jobs.get()
        kernel(*args)
        del kernel, args  # do not keep the arrays of the last job alive


def _summon(count: int) -> None:
    global _helpers
    if _helpers < count:
        with _lock:
            while _helpers < count:
                threading.Thread(target=_help, args=(_jobs,), name="normlab", daemon=True).start()
                _helpers += 1


def _forget() -> None:
    """A child process inherits these names but not the threads."""
    global _jobs, _helpers, _lock
    _jobs, _helpers, _lock = SimpleQueue(), 0, threading.Lock()


os.register_at_fork(after_in_child=_forget)
