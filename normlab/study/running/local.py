"""Cells in worker processes on this machine: each with its own threads or GPU, none able to hurt the others."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from normlab.errors import DataError, UsageError
from normlab.study.keeping.environment import available_cores, memory_bytes
from normlab.study.running.jobs import Emit, Job

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# Memory in pages of 2 MB where Linux gives them to who asks: a fresh tensor then costs four faults, not two thousand.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_BYTES_PER_WORKER = 2 << 30  # what a comparison of residual networks on small images takes, generously
_LAST_WORDS = 300  # characters of a dead worker's log that are quoted


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


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    device: str
    job: Job | None = None
    pending: bytes = b""

    def leave(self) -> int:
        """Wait for its end, release what belongs to it, and return its exit code."""
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]
        return code


class LocalExecutor:
    """Persistent workers, started when needed and replaced when they die.

    Every worker inherits `lock`, the file through which the driver holds its cells. Workers write what they have
    to say besides events to `logs`.
    """

    def __init__(self, layout: Layout, *, lock: int, logs: Path, plugins: Sequence[str] = ()) -> None:
        self.layout = layout
        self._lock, self._logs, self._plugins = lock, logs, plugins
        self._workers: list[_Worker] = []
        self._started = 0
        self._selector = selectors.DefaultSelector()
        logs.mkdir(parents=True, exist_ok=True)

    def free(self) -> bool:
        return sum(w.job is not None for w in self._workers) < self.layout.jobs

    def start(self, job: Job) -> None:
        worker = next((w for w in self._workers if w.job is None), None) or self._new_worker()
        worker.job = job
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died just now; its output says so when it is read
            worker.process.stdin.write(json.dumps(job.as_dict()).encode() + b"\n")
            worker.process.stdin.flush()

    def wait(self, emit: Emit, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            worker: _Worker = key.data
            assert worker.process.stdout is not None
            received = os.read(worker.process.stdout.fileno(), 1 << 16)
            if received:
                self._emit_events(worker, received, emit)
            else:
                self._remove_dead(worker, emit)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.leave()
            with contextlib.suppress(OSError):  # the directory may be gone
                if not worker.log.stat().st_size:
                    worker.log.unlink()
        self._workers.clear()
        self._selector.close()

    def _emit_events(self, worker: _Worker, received: bytes, emit: Emit) -> None:
        *lines, worker.pending = (worker.pending + received).split(b"\n")
        for line in lines:
            event = json.loads(line)
            job = worker.job
            assert job is not None, "a worker without a job has nothing to say"
            if event["event"] in ("end", "disk"):
                worker.job = None
            emit(job, event)

    def _remove_dead(self, worker: _Worker, emit: Emit) -> None:
        """The worker is gone, and what it had not said in full is lost."""
        self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self._workers.remove(worker)
        code = worker.leave()
        if worker.job is not None:
            emit(worker.job, {"event": "lost", "reason": _cause_of_death(code, worker.log)})

    def _new_worker(self) -> _Worker:
        self._started += 1
        busy = Counter(w.device for w in self._workers)
        device = min(self.layout.devices, key=lambda name: busy[name])
        log = self._logs / f"worker-{os.getpid()}-{self._started}.log"
        command = [
            sys.executable, "-m", "normlab.study.running.worker",
            "--threads", str(self.layout.threads), "--device", device,
            *(part for plugin in self._plugins for part in ("--plugin", plugin)),
        ]  # fmt: skip
        with _open_log(log) as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=worker_environment(self.layout.threads),
                pass_fds=(self._lock,),
                start_new_session=True,  # an interrupt at the terminal is the driver's to handle
            )
        worker = _Worker(process, log, device)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        return worker


def _open_log(log: Path) -> BinaryIO:
    """A worker's log, opened for writing. Raises DataError where it cannot be."""
    try:
        return log.open("wb")
    except OSError as e:
        raise DataError(f"cannot write {str(log)!r}: {e.strerror or e}") from e


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: as many threads as it may use, and huge pages unless the user has tuned malloc."""
    named = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {"GLIBC_TUNABLES": _HUGE_PAGES} | os.environ | named


def _cause_of_death(code: int, log: Path) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    words = log.read_text(errors="replace").strip()[-_LAST_WORDS:] if log.exists() else ""
    return f"its worker {how}" + (f": {words}" if words and code >= 0 else "")
