"""Threads that live in compiled code and share the units of a job.

As in `normlab.planes._threads` a job is a number of units that whoever is awake takes. But here a helper never needs
the interpreter lock, for which it would contend with the caller at the start and the end of every job (more than a
small job takes): it sleeps in compiled code, and a job reaches it as plain numbers, the address of the code among them.
While one thread's job has the helpers, another's runs on its own thread alone.

The protocol, on the counters of `control`: a job is open while UNITS is not zero. A helper counts itself in ACTIVE
before it looks. The caller waits until all units are DONE, closes the job, and describes the next one only when no
helper is ACTIVE any more.

Helpers sleep on a POSIX semaphore; where there is none (Windows, macOS) the caller does the work alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from normlab.planes._counters import ACTIVE, DONE, NEXT, SIZE, UNITS, call_at, fetch_add
from normlab.planes._threads import GRAIN, num_threads

_HAS_SEMAPHORES = sys.platform == "linux"

_sem_init: Any = types.ExternalFunction("sem_init", types.int32(types.intp, types.int32, types.uint32))
_sem_post: Any = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_wait: Any = types.ExternalFunction("sem_wait", types.int32(types.intp))
_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())


class _Team:
    """The helpers, and the memory through which they are told of a job."""

    def __init__(self) -> None:
        self.control = np.zeros(SIZE, np.int64)
        self.job = np.zeros(64, np.int64)
        self.semaphore = np.zeros(16, np.int64)
        self.lock = threading.Lock()
        self.helpers = 0
        if _HAS_SEMAPHORES:
            _prepare(self.semaphore)

    def grow(self, helpers: int) -> None:
        while self.helpers < helpers:
            args = (self.control, self.job, self.semaphore)
            threading.Thread(target=_serve, args=args, name="normlab", daemon=True).start()
            self.helpers += 1

    def alone(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The first arguments of `share` for a job without helpers, in memory of its own."""
        return np.zeros(SIZE, np.int64), np.zeros(64, np.int64), self.semaphore, 0


_team: _Team | None = None


def shared(passes: Callable[..., None], elements: int, *args: Any) -> None:
    """Call compiled `passes(control, job, semaphore, helpers, *args)`, which shares its jobs with helpers.

    None is woken for little work, by a second thread while a first one has them, or where there are none.
    """
    global _team
    team = _team = _team or _Team()
    helpers = min(num_threads() - 1, elements // GRAIN) if _HAS_SEMAPHORES else 0
    if helpers > 0 and team.lock.acquire(blocking=False):
        try:
            team.grow(helpers)
            passes(team.control, team.job, team.semaphore, helpers, *args)
        finally:
            team.lock.release()
    else:
        passes(*team.alone(), *args)


def _forget() -> None:
    """A child process inherits the team but not its threads."""
    global _team
    _team = None


os.register_at_fork(after_in_child=_forget)


@njit(cache=True)
def _prepare(semaphore: Any) -> None:
    _sem_init(semaphore.ctypes.data, 0, 0)


@njit(nogil=True, cache=True)
def share(control: Any, job: Any, semaphore: Any, helpers: int, units: int) -> None:
    """Do a job that is described in `job`, whose first number is the address of `void f(job, control)`."""
    fetch_add(control, NEXT, -fetch_add(control, NEXT, 0))
    fetch_add(control, DONE, -fetch_add(control, DONE, 0))
    fetch_add(control, UNITS, units)
    for _ in range(min(helpers, units - 1)):
        _sem_post(semaphore.ctypes.data)
    call_at(job[0], job.ctypes.data, control.ctypes.data)
    while fetch_add(control, DONE, 0) < units:
        _sched_yield()  # some helper is in its last unit
    fetch_add(control, UNITS, -units)
    while fetch_add(control, ACTIVE, 0) != 0:
        _sched_yield()  # some helper is on its way out: the job must not be described anew before it has left


@njit(nogil=True, cache=True)
def _serve(control: Any, job: Any, semaphore: Any) -> None:
    """A helper's life: sleep, and on waking do what the open job needs."""
    while True:
        _sem_wait(semaphore.ctypes.data)
        fetch_add(control, ACTIVE, 1)
        if fetch_add(control, UNITS, 0) > 0:
            call_at(job[0], job.ctypes.data, control.ctypes.data)
        fetch_add(control, ACTIVE, -1)
