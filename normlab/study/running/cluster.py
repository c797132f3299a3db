"""Cells as Ray tasks, for when one machine is not enough: the same cell function, Ray's placement and retries.

A task is a stream of which item i is the record of epoch i and the last is how the cell ended. When its machine
dies, Ray runs the task again elsewhere and passes over as many items as the driver had: since a training that is
taken up from its checkpoint replays the epochs before, the stream goes on where it was, and no epoch is lost or
told twice. For that the checkpoints have to lie where every machine can read them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from normlab.errors import UsageError, require
from normlab.study.running.jobs import SIGNS, STALL, START, Emit, Event, Job, stalled

RETRIES = 5  # of a task whose machine or process died


@dataclass(frozen=True)
class ClusterOptions:
    """Where the cluster is and what a cell takes of it.

    `address` is that of a running cluster ("auto" for the one this machine belongs to), None for a cluster of this
    machine alone. A cell takes `threads` CPUs and `gpus` GPUs, which may be a fraction. `placement` is Ray's
    scheduling strategy ("DEFAULT" fills machines, "SPREAD" spreads over them); `runtime_env` is handed to Ray.
    """

    address: str | None = None
    threads: int = 1
    gpus: float = 0.0
    placement: str = "DEFAULT"
    runtime_env: dict[str, Any] = field(default_factory=dict)


class RayExecutor:
    """As many cells at a time as Ray finds room for; Ray queues the rest."""

    def __init__(
        self, options: ClusterOptions, *, at_once: int, plugins: Sequence[str] = (), stall: float | None = STALL
    ) -> None:
        self._ray = _import_ray()
        self._plugins, self._at_once, self._stall = tuple(plugins), at_once, stall
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                self._ray.init(
                    address=options.address,
                    runtime_env=options.runtime_env or None,
                    log_to_driver=False,
                    include_dashboard=False,
                    configure_logging=False,
                )
            except ConnectionError as e:
                raise UsageError(f"--address {options.address!r}: no Ray cluster answers there ({e})") from e
        self._task = self._ray.remote(_stream).options(
            num_returns="streaming",
            num_cpus=options.threads,
            num_gpus=options.gpus,
            max_retries=RETRIES,
            scheduling_strategy=options.placement,
        )
        self._threads, self._gpus = options.threads, options.gpus
        self._streams: dict[Any, Job] = {}

    def free(self) -> bool:
        return len(self._streams) < self._at_once

    def start(self, job: Job) -> None:
        self._streams[self._task.remote(job.as_dict(), self._threads, self._gpus > 0, self._plugins, self._stall)] = job

    def wait(self, emit: Emit, seconds: float) -> None:
        ready, _ = self._ray.wait(list(self._streams), timeout=seconds, fetch_local=False)
        for stream in ready:
            job = self._streams[stream]
            event = self._next(stream)
            if event["event"] in ("end", "disk", "lost"):
                del self._streams[stream]
            for text in event.pop("notices", ()):
                emit(job, {"event": "notice", "text": text})
            emit(job, event)

    def close(self) -> None:
        for stream in self._streams:
            self._ray.cancel(stream, force=True)
        self._streams.clear()
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()

    def _next(self, stream: Any) -> Event:
        try:
            event: Event = self._ray.get(next(stream))
        except StopIteration:
            return {"event": "lost", "reason": "its task ended without a word"}
        except self._ray.exceptions.RayError as e:
            return {"event": "lost", "reason": f"its task was lost ({str(e).splitlines()[0]})"}
        return event


def _stream(
    facts: dict[str, Any], threads: int, gpu: bool, plugins: Sequence[str], stall: float | None = STALL
) -> Iterator[Event]:
    """Train a cell and yield what is to be reported: one item for each epoch, then the end with all notices."""
    events: queue.Queue[Event] = queue.Queue()
    threading.Thread(target=_run, args=(facts, threads, gpu, plugins, events.put), daemon=True).start()
    notices: list[str] = []
    patience = None if stall is None else max(stall, START)
    while True:
        try:
            event = events.get(timeout=patience)
        except queue.Empty:
            event = stalled(patience or 0.0)
        if event["event"] != "reading":
            patience = stall
        if event["event"] in SIGNS:
            continue
        if event["event"] == "notice":
            notices.append(event["text"])  # kept for the end: an item of its own would shift the epochs
        elif event["event"] == "epoch":
            yield event
        else:
            yield {**event, "notices": notices}
            return


def _run(facts: dict[str, Any], threads: int, gpu: bool, plugins: Sequence[str], emit: Any) -> None:
    job = Job.from_dict(facts)
    try:
        import torch

        from normlab.study.plugins import load_plugin
        from normlab.study.running.jobs import Beat, check_data, failure, run_job
        from normlab.study.source import open_data

        torch.set_num_threads(threads)
        for plugin in plugins:
            load_plugin(plugin)
        reading, step = (Beat(emit, sign) for sign in SIGNS)
        dataset = open_data(job.data, progress=reading)
        check_data(job, dataset)
    except Exception as e:
        emit(failure(job.cell, e))
        return
    run_job(job, dataset, emit, "cuda" if gpu else "cpu", on_step=step)


def _import_ray() -> Any:
    require("--backend ray", "ray", "ray")
    import ray

    return ray
