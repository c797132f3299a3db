"""Shares the kernels of `normlab.planes._work` among threads that live in compiled code.

As in `normlab.planes._threads` a job is a number of units that whoever is awake takes. But here a helper never needs
the interpreter lock, for which it would contend with the caller at the start and the end of every job (more than a
small job takes): it sleeps in compiled code, and a job reaches it as plain numbers, addresses included. While one
thread's job has the helpers, another's runs on its own thread alone.

The protocol, on the counters of `control`: a job is open while UNITS is not zero. A helper counts itself in ACTIVE
before it looks. The caller waits until all units are DONE, closes the job, and describes the next one only when no
helper is ACTIVE any more.

Helpers sleep on a POSIX semaphore; where there is none (Windows, macOS) the caller does the work alone.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
from numba import carray, njit, types

from normlab.planes._counters import ACTIVE, DONE, NEXT, SIZE, UNITS, fetch_add, pointer
from normlab.planes._threads import GRAIN, num_threads
from normlab.planes._work import work

_HAS_SEMAPHORES = sys.platform == "linux"

_sem_init: Any = types.ExternalFunction("sem_init", types.int32(types.intp, types.int32, types.uint32))
_sem_post: Any = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_wait: Any = types.ExternalFunction("sem_wait", types.int32(types.intp))


def run(kind: int, units: int, x: np.ndarray, *args: Any) -> None:
    """Do a job of `normlab.planes._work` on all threads; the arguments are those of `work` from `x` on."""
    helpers = min(num_threads(), units, 1 + x.size // GRAIN) - 1
    team = _team_for(x.dtype)
    if helpers > 0 and _HAS_SEMAPHORES and team.lock.acquire(blocking=False):
        try:
            team.grow(helpers)
            _share(team.control, team.job, team.semaphore, helpers, kind, units, x, *args)
        finally:
            team.lock.release()
    else:
        work(kind, np.zeros(SIZE, np.int64), units, x, *args)


class _Team:
    """The helpers of one dtype, and the memory through which they are told of a job."""

    def __init__(self, dtype: np.dtype) -> None:
        self.control = np.zeros(SIZE, np.int64)
        self.job = np.zeros(64, np.int64)
        self.semaphore = np.zeros(16, np.int64)
        self.sample = np.empty(0, dtype)
        self.lock = threading.Lock()
        self.helpers = 0
        if _HAS_SEMAPHORES:
            _prepare(self.semaphore)

    def grow(self, helpers: int) -> None:
        while self.helpers < helpers:
            args = (self.control, self.job, self.semaphore, self.sample)
            threading.Thread(target=_serve, args=args, name="normlab", daemon=True).start()
            self.helpers += 1


_teams: dict[Any, _Team] = {}


def _team_for(dtype: np.dtype) -> _Team:
    team = _teams.get(dtype)
    return team if team is not None else _teams.setdefault(dtype, _Team(dtype))


# a child process inherits the teams but not their threads
os.register_at_fork(after_in_child=_teams.clear)


@njit(cache=True)
def _prepare(semaphore: Any) -> None:
    _sem_init(semaphore.ctypes.data, 0, 0)


@njit(nogil=True, cache=True)
def _address(a: Any) -> Any:
    return np.int64(a.ctypes.data)


@njit(nogil=True, cache=True)
def _share(
    control: Any, job: Any, semaphore: Any, helpers: int,
    kind: int, units: int, x: Any, g: Any, y: Any, shape: Any, extent: int, chunks: int, code: Any, constants: Any,
    count: int, outputs: Any, flag: bool, rows: Any, eps: float, grids: Any, sums: Any,
) -> None:  # fmt: skip
    """Describe the job, wake the helpers, work along, and wait for units still in other hands."""
    while fetch_add(control, ACTIVE, 0) != 0:
        pass  # a helper is still on its way out of the last job
    job[0], job[4], job[10], job[11], job[16], job[19] = kind, x.size, extent, chunks, count, int(flag)
    job[5], job[6], job[7], job[8], job[9] = shape[0], shape[1], shape[2], int(shape[3]), shape[4]
    job[1], job[2], job[3] = _address(x), _address(g), _address(y)
    job[12], job[13], job[14], job[15] = _address(code), code.shape[0], _address(constants), constants.size
    job[17], job[18], job[20], job[21] = _address(outputs), outputs.shape[0], _address(rows), rows.shape[0]
    job[22], job[23] = _address(grids), grids.shape[0]
    job[24], job[25], job[26], job[27] = _address(sums), sums.shape[0], sums.shape[1], sums.shape[2]
    job[32:33].view(np.float64)[0] = eps
    fetch_add(control, NEXT, -fetch_add(control, NEXT, 0))
    fetch_add(control, DONE, -fetch_add(control, DONE, 0))
    fetch_add(control, UNITS, units)
    for _ in range(helpers):
        _sem_post(semaphore.ctypes.data)
    work(
        kind, control, units, x, g, y, shape, extent, chunks, code, constants, count, outputs, flag, rows, eps, grids,
        sums,
    )  # fmt: skip
    while fetch_add(control, DONE, 0) < units:
        pass  # some helper is in its last unit
    fetch_add(control, UNITS, -units)


@njit(nogil=True, cache=True)
def _serve(control: Any, job: Any, semaphore: Any, sample: Any) -> None:
    """A helper's life: sleep, and on waking do what the open job needs."""
    real, whole = sample.dtype, control.dtype
    while True:
        _sem_wait(semaphore.ctypes.data)
        fetch_add(control, ACTIVE, 1)
        units = fetch_add(control, UNITS, 0)
        if units > 0:
            size = (job[4],)
            shape = (job[5], job[6], job[7], job[8] != 0, job[9])
            n, channels = job[5], job[6]
            doubles = np.float64
            work(
                job[0], control, units,
                carray(pointer(job[1]), size, real), carray(pointer(job[2]), size, real),
                carray(pointer(job[3]), size, real), shape, job[10], job[11],
                carray(pointer(job[12]), (job[13], 6), whole), carray(pointer(job[14]), (job[15],), doubles), job[16],
                carray(pointer(job[17]), (job[18], 2), whole), job[19] != 0,
                carray(pointer(job[20]), (job[21], channels), doubles), job[32:33].view(doubles)[0],
                carray(pointer(job[22]), (job[23], n, channels), doubles),
                carray(pointer(job[24]), (job[25], job[26], job[27]), doubles),
            )  # fmt: skip
        fetch_add(control, ACTIVE, -1)
