"""While kernels are compiled: a line that says so, and a second process that begins at the other end of what is needed.

Numba compiles one function at a time in a process. Who is about to need several kernels says which
(`normlab.kernels.cpu.planes`); if one of them is not on disk, another process compiles the last ones first, and this
one finds them on disk when it gets there. Where both compile the same one, the result is the same. NORMLAB_COMPILING
set to "alone" leaves out both, the line and the process.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from normlab.kernels.runtime.needed import Need, address
from normlab.kernels.runtime.system import COMPILE_ALONE, available_cores

PATIENCE = 2.0  # seconds of compiling after which a line says so
LINE = "normlab: compiling kernels for this processor; it is done once, and they are kept on disk"


class Compiling:
    """What this process has compiled so far, and who helps."""

    def __init__(self, timer: Callable[[float, Callable[[], None]], Any] = threading.Timer) -> None:
        self._timer = timer
        self._spent = 0.0
        self._depth = 0
        self._said = False
        self._needed: Sequence[Need] = ()  # for a helper
        self._helper: subprocess.Popen[bytes] | None = None

    @contextmanager
    def expecting(self, needed: Sequence[Need]) -> Iterator[None]:
        """Around what may compile some of these kernels; a helper compiles them in this order."""
        self._needed = needed
        try:
            yield
        finally:
            self._needed = ()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around the compiling of a kernel that was not on disk."""
        if self._depth or COMPILE_ALONE.items() <= os.environ.items():
            yield
            return
        self._start_helper()
        timer = self._timer(max(0.0, PATIENCE - self._spent), self.say)
        timer.daemon = True
        started, self._depth = perf_counter(), 1
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._depth = 0
            self._spent += perf_counter() - started

    def say(self) -> None:
        """Write the line, once."""
        if not self._said and sys.stderr is not None:
            self._said = True
            print(LINE, file=sys.stderr, flush=True)

    def _start_helper(self) -> None:
        needed, self._needed = self._needed, ()
        running = self._helper is not None and self._helper.poll() is None
        if running or len(needed) < 2 or available_cores() < 2 or getattr(sys, "frozen", False) or not sys.executable:
            return
        from numba import config  # it is compiling

        environment = {**os.environ, **COMPILE_ALONE}
        if folder := getattr(config, "CACHE_DIR", ""):
            environment["NUMBA_CACHE_DIR"] = str(Path(folder).absolute())
        with suppress(OSError):  # then this process compiles all of it
            self._helper = subprocess.Popen(
                [sys.executable, "-m", __name__, json.dumps(needed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[3],  # from where the package is imported
                env=environment,
            )
            atexit.register(_stop, self._helper)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


compiling = Compiling()


def main(names: str) -> None:
    """Compile the kernels of such a list, as JSON."""
    for module, name, arguments in json.loads(names):
        address(Need(module, name, tuple(arguments)))


if __name__ == "__main__":
    main(sys.argv[1])
