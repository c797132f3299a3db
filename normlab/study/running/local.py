"""Cells in worker processes on this machine: each with its own threads or GPU, none able to hurt the others."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from normlab.errors import DataError, UsageError
from normlab.kernels.runtime.system import COMPILE_ALONE
from normlab.study.keeping.environment import available_cores, memory_bytes
from normlab.study.running.jobs import SIGNS, STALL, START, Emit, Job, stalled

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# Memory in pages of 2 MB where Linux gives them to who asks: a fresh tensor then costs four faults, not two thousand.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_BYTES_PER_WORKER = 2 << 30  # what a comparison of residual networks on small images takes, generously
_LAST_WORDS = 300  # characters of a dead worker's log that are quoted
_TRACE = 10_000  # characters of a log that are kept with a cell that hung
_MOST_UNSEEN = 5.0  # seconds of silence that one look adds: a driver that was stopped itself has heard nothing
_GRACE = 2.0  # seconds for the last words of a worker


@dataclass(frozen=True)
class Layout:
    """How many workers there are, with how many threads each, on which devices."""

    jobs: int
    threads: int
    devices: tuple[str, ...] = ("cpu",)


def plan_layout(
    cells: int,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    devices: Sequence[str] = ("cpu",),
    per_gpu: int = 1,
    cores: int | None = None,
    memory: int | None = None,
) -> Layout:
    """Divide a machine among workers, so that jobs x threads <= cores.

    By default one worker per core with one thread each (two single-threaded workers finish sooner than one with
    two threads), but no more than there are cells or 2 GiB of memory for each; on GPUs `per_gpu` workers for
    each. Raises UsageError if what is asked for does not fit.
    """
    cores = cores or available_cores()
    memory = (
        memory or memory_bytes() or sys.maxsize
    )  # all of it: what is free now would be another layout at every resume
    on_gpu = devices[0] != "cpu"
    if jobs is None:
        room = len(devices) * per_gpu if on_gpu else min(cores // (threads or 1), memory // _BYTES_PER_WORKER)
        jobs = max(1, min(cells, room))
    if jobs > cores and not on_gpu:
        raise UsageError(f"--jobs {jobs} is more than the {cores} cores there are; expected at most {cores}")
    if threads is None:
        threads = max(1, cores // jobs)
    elif jobs * threads > cores and not on_gpu:
        raise UsageError(
            f"--jobs {jobs} with --threads {threads} needs {jobs * threads} cores and there are {cores}; lower either"
        )
    return Layout(jobs, threads, tuple(devices))


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    device: str
    lines: queue.Queue[tuple[_Worker, bytes]]
    job: Job | None = None
    began: bool = False  # whether its job has taken a step
    silence: float = 0.0  # seconds since its last sign of life
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # it was closed
            for line in self.process.stdout:
                self.lines.put((self, line))
        self.lines.put((self, b""))

    def kill(self) -> None:
        """End it, and what its model has started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def leave(self) -> int:
        """Wait for its end, release what belongs to it, and return its exit code."""
        code = self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.reader.join(_GRACE)
        if not self.reader.is_alive():  # else it waits for a process that holds the other end
            self.process.stdout.close()
        return code


class LocalExecutor:
    """Persistent workers, started when needed and replaced when they die.

    Every worker inherits `lock`, the file through which the driver holds its cells. Workers write what they have
    to say besides events to `logs`. One that takes no step for `stall` seconds is ended, and its cell has failed.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        lock: int,
        logs: Path,
        plugins: Sequence[str] = (),
        stall: float | None = STALL,
    ) -> None:
        self.layout = layout
        self._lock, self._logs, self._plugins, self._stall = lock, logs, plugins, stall
        self._workers: list[_Worker] = []
        self._started = 0
        self._lines: queue.Queue[tuple[_Worker, bytes]] = queue.Queue()
        self._looked = time.monotonic()
        logs.mkdir(parents=True, exist_ok=True)

    def free(self) -> bool:
        return sum(w.job is not None for w in self._workers) < self.layout.jobs

    def start(self, job: Job) -> None:
        worker = next((w for w in self._workers if w.job is None), None) or self._new_worker()
        worker.job, worker.began, worker.silence = job, False, 0.0
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died just now; its output says so when it is read
            worker.process.stdin.write(json.dumps(job.as_dict()).encode() + b"\n")
            worker.process.stdin.flush()

    def wait(self, emit: Emit, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._emit_line(*self._lines.get(timeout=seconds), emit)
        self._emit_waiting(emit)
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _MOST_UNSEEN), now
        for worker in list(self._workers):
            worker.silence += passed
            if worker.process.poll() is not None:
                self._remove_dead(worker, emit)
            elif worker.job is not None and self._stall is not None:
                patience = self._stall if worker.began else max(self._stall, START)
                if worker.silence > patience:
                    self._end_hung(worker, patience, emit)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.leave()
            with contextlib.suppress(OSError):  # the directory may be gone
                if not worker.log.stat().st_size:
                    worker.log.unlink()
        self._workers.clear()

    def _emit_waiting(self, emit: Emit) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._emit_line(*self._lines.get_nowait(), emit)

    def _emit_line(self, worker: _Worker, line: bytes, emit: Emit) -> None:
        job = worker.job
        if job is None or not line.endswith(b"\n"):  # it ended in the middle of a word
            return
        event = json.loads(line)
        worker.began, worker.silence = worker.began or event["event"] != "reading", 0.0
        if event["event"] in ("end", "disk"):
            worker.job = None
        if event["event"] not in SIGNS:
            emit(job, event)

    def _remove_dead(self, worker: _Worker, emit: Emit) -> None:
        """The worker is gone, and what it had not said in full is lost."""
        worker.kill()  # what it has left behind
        code = worker.leave()
        self._emit_waiting(emit)
        self._workers.remove(worker)
        if worker.job is not None:
            emit(worker.job, {"event": "lost", "reason": _cause_of_death(code, worker.log)})

    def _end_hung(self, worker: _Worker, seconds: float, emit: Emit) -> None:
        """End a worker that hangs; the end of its log says where."""
        job, worker.job = worker.job, None
        assert job is not None
        if hasattr(signal, "SIGUSR1"):
            worker.process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(_GRACE)  # which it ignores, unless it has not begun yet
        worker.kill()
        worker.leave()
        self._workers.remove(worker)
        emit(job, stalled(seconds, _end_of(worker.log, _TRACE)))

    def _new_worker(self) -> _Worker:
        self._started += 1
        busy = Counter(w.device for w in self._workers)
        device = min(self.layout.devices, key=lambda name: busy[name])
        log = self._logs / f"worker-{os.getpid()}-{self._started}.log"
        command = [
            sys.executable, "-m", "normlab.study.running.worker",
            "--threads", str(self.layout.threads), "--device", device, "--lock", str(self._lock),
            *(part for plugin in self._plugins for part in ("--plugin", plugin)),
        ]  # fmt: skip
        with _open_log(log) as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=worker_environment(self.layout.threads),
                pass_fds=(self._lock,) if os.name == "posix" else (),
                start_new_session=True,  # an interrupt at the terminal is the driver's to handle
            )
        worker = _Worker(process, log, device, self._lines)
        self._workers.append(worker)
        return worker


def _open_log(log: Path) -> BinaryIO:
    """A worker's log, opened for writing. Raises DataError where it cannot be."""
    try:
        return log.open("wb")
    except OSError as e:
        raise DataError(f"cannot write {str(log)!r}: {e.strerror or e}") from e


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: as many threads as it may use, and huge pages unless the user has tuned malloc.

    It compiles without a word, and without a process of its own that helps: the other workers compile as well.
    """
    named = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {"GLIBC_TUNABLES": _HUGE_PAGES} | os.environ | named | COMPILE_ALONE


def _cause_of_death(code: int, log: Path) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    words = _end_of(log, _LAST_WORDS)
    return f"its worker {how}" + (f": {words}" if words and code >= 0 else "")


def _end_of(log: Path, characters: int) -> str:
    try:
        return log.read_text(errors="replace").strip()[-characters:]
    except OSError:  # the directory may be gone
        return ""
