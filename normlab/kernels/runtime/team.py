"""Threads that live in compiled code and share the units of a job.

As in `normlab.kernels.runtime.threads` a job is a number of units that whoever is awake takes. But here a helper
never needs the interpreter lock, for which it would contend with the caller at the start and the end of every job
(more than a small job takes): a job reaches it as plain numbers, the address of the code among them.

Where torch computes with the threads of an OpenMP library, these do our jobs too (`normlab.kernels.runtime.openmp`).
Elsewhere the helpers are our own, and sleep in compiled code; while one thread's job has them, another's runs on its
own thread alone. The protocol with them, on the counters of `control`: a job is open while UNITS is not zero. A
helper counts itself in ACTIVE before it looks. The caller waits until all units are DONE, closes the job, and
describes the next one only when no helper is ACTIVE any more.

Our helpers sleep on a POSIX semaphore; where there is none (Windows, macOS) the caller does the work alone.
"""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types

from normlab.kernels.runtime.counters import (
    ACTIVE,
    ARRIVED,
    DONE,
    JOB,
    LINE,
    SIZE,
    UNITS,
    call_at,
    fetch_add,
    number_at,
    parallel_at,
    pointer,
)
from normlab.kernels.runtime.job import CONTROL, HELPERS, NUMBER, PARALLEL, SEMAPHORE, SHARES, TABLE, WORK
from normlab.kernels.runtime.job import UNITS as TO_DO
from normlab.kernels.runtime.openmp import parallel
from normlab.kernels.runtime.threads import GRAIN, num_threads

_HAS_SEMAPHORES = sys.platform == "linux"

_sem_init: Any = types.ExternalFunction("sem_init", types.int32(types.intp, types.int32, types.uint32))
_sem_post: Any = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_wait: Any = types.ExternalFunction("sem_wait", types.int32(types.intp))
_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())


class _Team:
    """The helpers, and the memory through which they are told of a job."""

    def __init__(self) -> None:
        self.control = np.zeros(SIZE, np.int64)
        self.semaphore = np.zeros(16, np.int64)
        self.addresses = self.control.ctypes.data, self.semaphore.ctypes.data
        self.lock = threading.Lock()
        self.helpers = 0
        if _HAS_SEMAPHORES:
            _prepare(self.semaphore)

    def grow(self, helpers: int) -> None:
        while self.helpers < helpers:
            args = (self.control, self.semaphore)
            threading.Thread(target=_serve, args=args, name="normlab", daemon=True).start()
            self.helpers += 1


_team: _Team | None = None


def shared(direction: Callable[[int], None], job: array, elements: int, *, torchs: bool = True) -> None:
    """Call the C function `direction(address of job)`, whose parts are shared with helpers.

    None is woken for little work, by a second thread while a first one has them, or where there are none. `torchs`
    says whether torch's threads may help: between NumPy's products they would wait awake on the cores of NumPy's own.
    """
    helpers = num_threads() - 1 if elements >= _GRAIN else 0
    if helpers > 0:
        if torchs:
            job[PARALLEL], job[NUMBER] = parallel()
        if job[PARALLEL]:  # never fewer threads than torch asks for: a team that is made smaller lets threads go
            _call(direction, job, helpers)
            return
        helpers = min(helpers, elements // GRAIN) if _HAS_SEMAPHORES else 0
    if helpers > 0:
        global _team
        team = _team = _team or _Team()
        if team.lock.acquire(blocking=False):
            try:
                team.grow(helpers)
                job[CONTROL], job[SEMAPHORE] = team.addresses
                _call(direction, job, helpers)
            finally:
                team.lock.release()
            return
    _call(direction, job, 0)


def _call(direction: Callable[[int], None], job: array, helpers: int) -> None:
    # counters of its own for every call: of the shares, and where there is no team of its control
    counters = array("q", bytes(8 * ((1 + helpers) * LINE + SIZE)))
    address = counters.buffer_info()[0]
    job[HELPERS], job[SHARES] = helpers, address
    if not job[CONTROL]:
        job[CONTROL] = address + 8 * (1 + helpers) * LINE
    direction(job.buffer_info()[0])


_GRAIN = 1 << 13  # elements below which waking threads that wait awake costs more than it saves


def _forget() -> None:
    """A child process inherits the team but not its threads."""
    global _team
    _team = None


os.register_at_fork(after_in_child=_forget)


@njit(cache=True)
def _prepare(semaphore: Any) -> None:
    _sem_init(semaphore.ctypes.data, 0, 0)


@njit(nogil=True, cache=True)
def share(job: Any) -> None:
    """Do the part of a job that its numbers describe (`normlab.kernels.runtime.job`)."""
    control = carray(pointer(job[CONTROL]), (SIZE,), np.int64)
    shares = carray(pointer(job[SHARES]), ((1 + job[HELPERS]) * LINE,), np.int64)
    units = job[TO_DO]
    for i in range(0, shares.size, LINE):
        fetch_add(shares, i, -fetch_add(shares, i, 0))
    if job[PARALLEL] != 0 and units > 1:
        parallel_at(job[PARALLEL], job[WORK], job.ctypes.data, job[HELPERS] + 1)
        return
    control[JOB] = job.ctypes.data
    fetch_add(control, ARRIVED, -fetch_add(control, ARRIVED, 0))
    fetch_add(control, DONE, -fetch_add(control, DONE, 0))
    fetch_add(control, UNITS, units)
    for _ in range(min(job[HELPERS], units - 1)):
        _sem_post(job[SEMAPHORE])
    call_at(job[WORK], job.ctypes.data)
    while fetch_add(control, DONE, 0) < units:
        _sched_yield()  # some helper is in its last unit
    fetch_add(control, UNITS, -units)
    while fetch_add(control, ACTIVE, 0) != 0:
        _sched_yield()  # some helper is on its way out: the job must not be described anew before it has left


@njit(nogil=True, cache=True)
def joined(job: Any) -> Any:
    """For a thread that joins a job: its control, the counters of its shares, and which share is the thread's own."""
    control = carray(pointer(job[CONTROL]), (SIZE,), np.int64)
    count = 1 + job[HELPERS]
    shares = carray(pointer(job[SHARES]), (count * LINE,), np.int64)
    number = number_at(job[NUMBER]) if job[NUMBER] != 0 else fetch_add(control, ARRIVED, 1)
    return control, shares, number % count


@njit(nogil=True, cache=True)
def _serve(control: Any, semaphore: Any) -> None:
    """A helper's life: sleep, and on waking do what the open job needs."""
    while True:
        _sem_wait(semaphore.ctypes.data)
        fetch_add(control, ACTIVE, 1)
        if fetch_add(control, UNITS, 0) > 0:
            job = carray(pointer(control[JOB]), (TABLE,), np.int64)
            call_at(job[WORK], job.ctypes.data)
        fetch_add(control, ACTIVE, -1)
