"""How threads share a job in compiled code: the protocol that `normlab.kernels.runtime.sharing` describes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types

from normlab.kernels.runtime.compiling import address_of, joining
from normlab.kernels.runtime.control import ACTIVE, ARRIVED, DONE, LINE, OVER, PART, SIZE, UNITS
from normlab.kernels.runtime.counters import call_at, fetch_add, number_at, parallel_at, pointer
from normlab.kernels.runtime.job import CONTROL, HELPERS, NUMBER, PARALLEL, PAUSE, SHARES, WORK
from normlab.kernels.runtime.job import UNITS as TO_DO
from normlab.kernels.runtime.unaliased import elements_at


def wait() -> int:
    """Address of `void wait(counters, units, pause)`, which returns when all units are done."""
    return address_of(_wait, types.void(types.intp, types.intp, types.intp))


def join() -> int:
    """Address of `void join(job, control)`: a helper's share of each part that it meets, until the job is over."""
    return address_of(_join, types.void(types.intp, types.intp))


def _wait(address: int, units: int, pause: int) -> None:
    counters = carray(pointer(address), (SIZE,), np.int64)
    while fetch_add(counters, DONE, 0) < units:
        _yield_core(pause)  # some helper is in its last unit


def _join(address: int, control_address: int) -> None:
    job, control = elements_at(address, np.int64), carray(pointer(control_address), (SIZE,), np.int64)
    done = 0
    part = fetch_add(control, PART, 0)
    while part != OVER:
        if part == done:
            _yield_core(job[PAUSE])
        else:
            done = part
            fetch_add(control, ACTIVE, 1)
            if fetch_add(control, UNITS, 0) > 0:
                call_at(job[WORK], address)
            fetch_add(control, ACTIVE, -1)
        part = fetch_add(control, PART, 0)


@joining
def _yield_core(pause: int) -> None:
    """Leave the core to another thread for a moment."""
    if pause != 0:
        number_at(pause)


@joining
def do_part(address: int) -> None:
    """Do the part of a job that its numbers describe (`normlab.kernels.runtime.job`)."""
    job = elements_at(address, np.int64)
    control = carray(pointer(job[CONTROL]), (SIZE,), np.int64)
    shares = carray(pointer(job[SHARES]), ((1 + job[HELPERS]) * LINE,), np.int64)
    units = job[TO_DO]
    for i in range(0, shares.size, LINE):
        fetch_add(shares, i, -fetch_add(shares, i, 0))
    if job[PARALLEL] != 0 and units > 1:
        parallel_at(job[PARALLEL], job[WORK], address, job[HELPERS] + 1)
        return
    fetch_add(control, ARRIVED, -fetch_add(control, ARRIVED, 0))
    fetch_add(control, DONE, -fetch_add(control, DONE, 0))
    fetch_add(control, UNITS, units)
    fetch_add(control, PART, 1)
    call_at(job[WORK], address)
    while fetch_add(control, DONE, 0) < units:
        _yield_core(job[PAUSE])  # some helper is in its last unit
    fetch_add(control, UNITS, -units)
    while fetch_add(control, ACTIVE, 0) != 0:
        _yield_core(job[PAUSE])  # some helper is on its way out: the job must not be described anew before it has left


@joining
def joined(job: Any) -> Any:
    """For a thread that joins a part of a job: its control, the counters of its shares, and which share is its own."""
    control = carray(pointer(job[CONTROL]), (SIZE,), np.int64)
    count = 1 + job[HELPERS]
    shares = carray(pointer(job[SHARES]), (count * LINE,), np.int64)
    number = number_at(job[NUMBER]) if job[NUMBER] != 0 else fetch_add(control, ARRIVED, 1)
    return control, shares, number % count
