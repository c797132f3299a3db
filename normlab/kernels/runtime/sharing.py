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
joined goes from part to part without the interpreter (`normlab.kernels.runtime.protocol`). The protocol, on the
counters of `control`: a part is open while UNITS is not zero. A helper counts itself in ACTIVE before it looks. The
caller waits until all units are DONE, closes the part, and describes the next one only when no helper is ACTIVE any
more. PART counts the parts; `OVER` ends the job.
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

from normlab.kernels.runtime.control import LINE, OVER, PART, SIZE
from normlab.kernels.runtime.job import CONTROL, HELPERS, NUMBER, PARALLEL, PAUSE, SHARES
from normlab.kernels.runtime.needed import Need, function
from normlab.kernels.runtime.openmp import parallel
from normlab.kernels.runtime.system import available_cores, pause

_GRAIN = 1 << 16  # elements below which a second thread costs more than it saves
GRAIN_AWAKE = 1 << 13  # likewise, where the threads wait awake
_PROTOCOL = "normlab.kernels.runtime.protocol"
_WAIT, _JOIN = Need(_PROTOCOL, "wait"), Need(_PROTOCOL, "join")


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
        function(_WAIT, 3)(counters.ctypes.data, units, pause())


def run(direction: Callable[[int], None], job: array[int], elements: int, *, with_torch: bool = True) -> None:
    """Call the C function `direction(address of job)`, whose parts are shared with other threads.

    None joins for little work. `with_torch` says whether torch's threads may: between NumPy's products they would wait
    awake on the cores of NumPy's own.
    """
    helpers = num_threads() - 1 if elements >= GRAIN_AWAKE else 0
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
        _call_helpers(helpers, _join, job, counters, control)
        direction(job.buffer_info()[0])
    finally:
        counters[control + PART] = OVER


def _join(job: array[int], counters: array[int], control: int) -> None:
    """What a helper does for a job, whose memory it keeps alive."""
    function(_JOIN, 2)(job.buffer_info()[0], counters.buffer_info()[0] + 8 * control)


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
