"""A worker process: reads jobs as JSON lines, trains one at a time, and writes events as JSON lines.

It lives as long as somebody holds the other end: when its input closes, because the driver is done or dead, it is
gone at once, in the middle of a step if need be. It inherits the driver's lock file, so that its cell stays
locked until it is gone.
"""

from __future__ import annotations

import argparse
import ctypes
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
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args()
    _die_with_parent()
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
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
    from normlab.study.running.jobs import Job, check_data, failure, run_job
    from normlab.study.source import open_data

    torch.set_num_threads(threads)
    for plugin in plugins:
        load_plugin(plugin)
    opened: dict[Any, Any] = {}
    while True:
        job = Job.from_dict(jobs.get())
        try:
            if job.data not in opened:
                opened = {job.data: open_data(job.data)}
            check_data(job, opened[job.data])
        except Exception as e:
            emit(failure(job.cell, e))
            continue
        run_job(job, opened[job.data], emit, device)


def _read_jobs(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)  # nobody is listening any more


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process with its parent, even while Python is busy in native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    main()
