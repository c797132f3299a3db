"""How kernels share work among threads: the one way in which more than one thread computes.

A job is a number of independent units. The caller starts on them at once, and whoever joins takes the next unit: waking
a thread takes longer than many units do, and nobody waits for it. Who does a unit never changes its result. Numba's
own threading layers are either not safe to enter from two threads at once (workqueue) or not safe after a fork
(OpenMP).

Who joins: where torch computes with the threads of an OpenMP library, these (`normlab.kernels.runtime.openmp`).
Elsewhere helpers of our own, which are Python threads that release the interpreter lock while they compute. While they
all serve one thread's job, another's runs on its own thread alone.

`share` hands out a compiled kernel of any arguments. `run` hands out a direction of a layer, whose parts (passes)
follow each other in compiled code: a job is plain numbers there (`normlab.kernels.runtime.job`), and a helper that has
joined goes from part to part without the interpreter. The protocol, on the counters of `control`: a part is open while
UNITS is not zero. A helper counts itself in ACTIVE before it looks. The caller waits until all units are DONE, closes
the part, and describes the next one only when no helper is ACTIVE any more. PART counts the parts; `_OVER` ends the
job.
"""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numba import carray

from normlab.kernels.runtime.compiling import called, joining
from normlab.kernels.runtime.counters import (
    ACTIVE,
    ARRIVED,
    DONE,
    LINE,
    PART,
    SIZE,
    UNITS,
    call_at,
    fetch_add,
    number_at,
    parallel_at,
    pointer,
)
from normlab.kernels.runtime.job import CONTROL, HELPERS, NUMBER, PARALLEL, PAUSE, SHARES, WORK
from normlab.kernels.runtime.job import UNITS as TO_DO
from normlab.kernels.runtime.openmp import parallel
from normlab.kernels.runtime.system import available_cores, pause
from normlab.kernels.runtime.unaliased import elements_at

_GRAIN = 1 << 16  # elements below which a second thread costs more than it saves
_GRAIN_AWAKE = 1 << 13  # likewise, where the threads wait awake
_OVER = -1


def num_threads() -> int:
    """Threads that the kernels use: torch's setting where torch is loaded, else OMP_NUM_THREADS, else the cores."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else available_cores()


def share(kernel: Callable[..., None], units: int, elements: int, *args: Any) -> None:
    """Run `kernel(counters, units, *args)`, which takes units until none is left; `elements` sizes the work."""
    counters = np.zeros(SIZE, np.int64)
    helpers = min(num_threads(), units, 1 + elements // _GRAIN) - 1
    if helpers > 0:
        _call_helpers(helpers, kernel, counters, units, *args)
    kernel(counters, units, *args)
    if helpers > 0:
        _wait(counters, units, pause())


def run(direction: Callable[[int], None], job: array[int], elements: int, *, with_torch: bool = True) -> None:
    """Call the C function `direction(address of job)`, whose parts are shared with other threads.

    None joins for little work. `with_torch` says whether torch's threads may: between NumPy's products they would wait
    awake on the cores of NumPy's own.
    """
    helpers = num_threads() - 1 if elements >= _GRAIN_AWAKE else 0
    if helpers > 0 and with_torch:
        job[PARALLEL], job[NUMBER] = parallel()
    if not job[PARALLEL]:  # else never fewer threads than torch asks for: a team that is made smaller lets threads go
        helpers = min(helpers, elements // _GRAIN)
    # counters of its own for every call: of the shares, and of its control
    counters = array("q", bytes(8 * ((1 + helpers) * LINE + SIZE)))
    address, control = counters.buffer_info()[0], (1 + helpers) * LINE
    job[HELPERS], job[SHARES], job[CONTROL] = helpers, address, address + 8 * control
    if helpers == 0 or job[PARALLEL]:
        direction(job.buffer_info()[0])
        return
    job[PAUSE] = pause()
    try:
        _call_helpers(helpers, _join, np.frombuffer(job, np.int64), np.frombuffer(counters, np.int64)[control:])
        direction(job.buffer_info()[0])
    finally:
        counters[control + PART] = _OVER


class _Helpers:
    """Python threads that wait for something to do. A child process inherits this object but not its threads."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.count = 0

    def grow(self, count: int) -> None:
        with self.lock:
            while self.count < count:
                threading.Thread(target=_run_tasks, args=(self.tasks,), name="normlab", daemon=True).start()
                self.count += 1


_helpers = _Helpers()


def _call_helpers(count: int, function: Callable[..., None], *args: Any) -> None:
    """Have `count` helpers call this function with these arguments, as soon as they can."""
    global _helpers
    if _helpers.process != os.getpid():
        _helpers = _Helpers()
    helpers = _helpers
    if helpers.count < count:
        helpers.grow(count)
    for _ in range(count):
        helpers.tasks.put((function, args))


def _run_tasks(tasks: SimpleQueue[Any]) -> None:
    while True:
        function, args = tasks.get()
        function(*args)
        del function, args  # do not keep the arrays of the last job alive


@called
def _wait(counters: Any, units: int, pause: int) -> None:
    while fetch_add(counters, DONE, 0) < units:
        _yield_core(pause)  # some helper is in its last unit


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


@called
def _join(numbers: Any, control: Any) -> None:
    """What a helper does for a job: its share of each part that it meets, until the job is over."""
    address = numbers.ctypes.data
    job = elements_at(address, np.int64)
    done = 0
    part = fetch_add(control, PART, 0)
    while part != _OVER:
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
def joined(job: Any) -> Any:
    """For a thread that joins a part of a job: its control, the counters of its shares, and which share is its own."""
    control = carray(pointer(job[CONTROL]), (SIZE,), np.int64)
    count = 1 + job[HELPERS]
    shares = carray(pointer(job[SHARES]), (count * LINE,), np.int64)
    number = number_at(job[NUMBER]) if job[NUMBER] != 0 else fetch_add(control, ARRIVED, 1)
    return control, shares, number % count
