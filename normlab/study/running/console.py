"""What people see while a study runs: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from typing import Any, Protocol, TextIO

from normlab.study.plain import escaped
from normlab.study.running.driver import Listener
from normlab.study.running.jobs import Job


class Console(Listener, Protocol):
    """A listener for the whole of a study, its data included; used as a context manager."""

    def data(self, done: int, total: int, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class PlainLines:
    """One line for everything that happens: for logs, pipes and continuous integration."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._total, self._ended, self._stream = 0, 0, stream or sys.stderr

    def expect(self, cells: int, done: int) -> None:
        """The number of cells, and of those that are done already."""
        self._total, self._ended = cells, done

    def started(self, job: Job) -> None:
        self._say(f"{job.cell.label()}: started")

    def epoch(self, job: Job, record: dict[str, Any]) -> None:
        self._say(f"{job.cell.label()}: {describe_epoch(job, record)}, {record['images_per_second']:.0f} images/s")

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self._ended += 1
        self._say(f"[{self._ended}/{self._total}] {job.cell.label()}: {status}{f' ({reason})' if reason else ''}")

    def notice(self, text: str) -> None:
        self._say(text)

    def data(self, done: int, total: int, what: str) -> None:
        """Progress of reading data: said at the beginning and the end only."""
        if done in (0, total):
            self._say(f"{what}: {done} of {total}")

    def _say(self, text: str) -> None:
        print(escaped(text), file=self._stream, flush=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class Bars:
    """A bar for the study and one for each cell under way."""

    def __init__(self) -> None:
        from rich import console, progress

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeElapsedColumn(),
            console=console.Console(stderr=True),
            transient=True,
        )
        self._all = self._bars.add_task("cells", total=None, note="")
        self._tasks: dict[int | str, Any] = {}

    def expect(self, cells: int, done: int) -> None:
        """The number of cells, and of those that are done already."""
        self._bars.update(self._all, total=cells, completed=done)

    def started(self, job: Job) -> None:
        if job.id in self._tasks:
            self._bars.remove_task(self._tasks[job.id])
        self._tasks[job.id] = self._bars.add_task(job.cell.label(), total=job.cell.epochs, note="")

    def epoch(self, job: Job, record: dict[str, Any]) -> None:
        note = f"train {record['train_accuracy']:.3f} val {record['val_accuracy']:.3f}"
        self._bars.update(self._tasks[job.id], completed=record["epoch"], note=note)

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self._bars.remove_task(self._tasks.pop(job.id))
        self._bars.advance(self._all)
        if status != "done":
            self.notice(f"{job.cell.label()}: {status}{f' ({reason})' if reason else ''}")

    def notice(self, text: str) -> None:
        self._bars.console.print(escaped(text), markup=False, highlight=False)

    def data(self, done: int, total: int, what: str) -> None:
        """Progress of reading data."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        self._bars.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


def describe_epoch(job: Job, record: dict[str, Any]) -> str:
    """One epoch in a few words."""
    return (
        f"epoch {record['epoch']}/{job.cell.epochs}, loss {record['train_loss']:.4f}, "
        f"train {record['train_accuracy']:.4f}, val {record['val_accuracy']:.4f}"
    )


def make_console() -> Console:
    """Bars on a terminal, plain lines otherwise."""
    return Bars() if sys.stderr.isatty() else PlainLines()
