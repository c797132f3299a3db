"""A worker process: reads jobs as JSON lines, trains one at a time, and writes events as JSON lines.

It lives as long as somebody holds the other end: when its input closes, because the driver is done or dead, it is
gone at once, in the middle of a step if need be. It inherits the driver's lock file, so that its cell stays
locked until it is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """`python -m normlab.study.running.worker`; started by `normlab.study.running.local`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--lock", type=int)
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args()
    _die_with_parent()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1)  # where it hangs, for its log
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    if hasattr(os, "register_at_fork"):
        own = [events.fileno(), *filter(None, [arguments.lock])]
        os.register_at_fork(after_in_child=lambda: _let_go(own))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints, prints to the log

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    work(jobs, emit, arguments.threads, arguments.device, arguments.plugin)


def work(jobs: queue.Queue[dict[str, Any]], emit: Any, threads: int, device: str, plugins: list[str]) -> None:
    """Train job after job, for ever."""
    import torch

    from normlab.study.plugins import load_plugin
    from normlab.study.running.jobs import SIGNS, Beat, Job, check_data, failure, run_job
    from normlab.study.source import open_data

    torch.set_num_threads(threads)
    for plugin in plugins:
        load_plugin(plugin)
    opened: dict[Any, Any] = {}
    reading, step = (Beat(emit, sign) for sign in SIGNS)
    while True:
        job = Job.from_dict(jobs.get())
        try:
            if job.data not in opened:
                opened = {job.data: open_data(job.data, progress=reading)}
            check_data(job, opened[job.data])
        except Exception as e:
            emit(failure(job.cell, e))
            continue
        run_job(job, opened[job.data], emit, device, on_step=step)


def _read_jobs(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with whatever the model started
    os._exit(0)  # nobody is listening any more


def _let_go(files: list[int]) -> None:
    """Close files in a child that a model or a loader forks: it would hold them when this process is gone."""
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process with its parent, even while Python is busy in native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    main()
