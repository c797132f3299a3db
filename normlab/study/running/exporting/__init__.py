"""A study's curves in the tracker that people look at already: TensorBoard, Weights & Biases, MLflow, Trackio.

`Exporting` is a listener like the bars on the terminal: it passes on everything, and opens a run of each tracker for
each cell that trains. A tracker is one function here, `open_run(name, config, study, place)`, and one row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from normlab.errors import UsageError, require
from normlab.study.running.console import Console
from normlab.study.running.jobs import Job

__all__ = ["TRACKERS", "Exporting", "Run", "exporting", "tracker_names"]

# name -> the extra that installs it, which is also the module with its `open_run`, and the modules that it needs
TRACKERS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


class Run(Protocol):
    """One cell in one tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, status: str) -> None: ...


def exporting(console: Console, trackers: str | Sequence[str], directory: Path) -> Console:
    """The console, or one that also writes every cell's curves into trackers, below a study's directory.

    `trackers` and what is raised for them are those of `tracker_names`.
    """
    names = tracker_names(trackers)
    return Exporting(console, names, directory) if names else console


def tracker_names(trackers: str | Sequence[str]) -> list[str]:
    """Each tracker once; `trackers` are names of TRACKERS, in a list or separated by commas.

    Raises UsageError for a name that is not known and for a tracker that is not installed.
    """
    names = [n.strip() for n in trackers.split(",")] if isinstance(trackers, str) else list(trackers)
    names = list(dict.fromkeys(filter(None, names)))
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--log {name!r} is not known; expected one of: {', '.join(TRACKERS)}")
        require(f"--log {name}", name, *TRACKERS[name])
    return names


class Exporting:
    """A console that also writes what cells report into trackers.

    A tracker that fails is left out from then on, with a notice: it never ends a study.
    """

    def __init__(self, console: Console, trackers: Sequence[str], directory: Path) -> None:
        self._console, self._directory = console, directory
        self._trackers = list(trackers)
        self._runs: dict[tuple[str, int], Run] = {}
        self.expect, self.notice, self.data = console.expect, console.notice, console.data

    def started(self, job: Job) -> None:
        self._console.started(job)

    def epoch(self, job: Job, record: dict[str, Any]) -> None:
        self._console.epoch(job, record)
        values = {k: float(v) for k, v in record.items() if _is_number(v) and k != "epoch"}
        for tracker in list(self._trackers):
            try:
                if (tracker, job.id) not in self._runs:
                    self._runs[tracker, job.id] = self._open(tracker, job)
                self._runs[tracker, job.id].log(int(record["epoch"]), values)
            except Exception as error:
                self._leave_out(tracker, error)

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self._console.ended(job, status, reason)
        self._close(job.id, status)

    def _open(self, tracker: str, job: Job) -> Run:
        module = import_module(f"normlab.study.running.exporting.{tracker}")
        config = {k: v for k, v in asdict(job.cell).items() if v is not None}
        run: Run = module.open_run(job.cell.label(), config, self._directory.name, self._directory / tracker)
        return run

    def _close(self, cell: int | None, status: str) -> None:
        for tracker, id in [key for key in self._runs if cell in (None, key[1])]:
            run = self._runs.pop((tracker, id))
            try:
                run.close(status)
            except Exception as error:
                self._leave_out(tracker, error)

    def _leave_out(self, tracker: str, error: Exception) -> None:
        if tracker in self._trackers:
            self._trackers.remove(tracker)
            said = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self._console.notice(f"--log {tracker} is left out from here on: {said[0]}")

    def __enter__(self) -> None:
        self._console.__enter__()

    def __exit__(self, *error: object) -> None:
        self._close(None, "paused")
        self._console.__exit__(*error)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
