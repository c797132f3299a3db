"""Progress in a notebook: one bar, with what is left and how long it may take."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from normlab.study.running.console import Console, make_console
from normlab.study.running.jobs import Job


def console() -> Console:
    """One bar in a notebook; what the command line shows anywhere else."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return OneBar(sys.modules["IPython.display"]) if getattr(shell, "kernel", None) is not None else make_console()


class OneBar:
    """A bar over the epochs of all trainings, in one output that is written anew; `display` is IPython's module."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._cells = self._ended = 0
        self._share: dict[int, float] = {}  # of its epochs that each training has behind it
        self._notices: list[str] = []
        self._begun, self._before, self._text = time.monotonic(), 0, "reading"

    def expect(self, cells: int, done: int) -> None:
        """The number of trainings, and of those that are done already."""
        self._cells, self._ended, self._before = cells, done, done
        self._share, self._begun = {}, time.monotonic()
        self._show()

    def started(self, job: Job) -> None:
        self._share.setdefault(job.id, 0.0)

    def epoch(self, job: Job, record: dict[str, Any]) -> None:
        self._share[job.id] = record["epoch"] / job.cell.epochs
        self._text = f"{job.cell.label()}: validation accuracy {record['val_accuracy']:.3f}"
        self._show()

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self._share.pop(job.id, None)
        self._ended += 1
        if status != "done":
            self.notice(f"{job.cell.label()}: {status}{f' ({reason})' if reason else ''}")
        self._show()

    def notice(self, text: str) -> None:
        self._notices.append(text)
        self._show()

    def data(self, done: int, total: int, what: str) -> None:
        """Progress of reading data."""
        self._text = f"{what}: {done} of {total}"
        if done in (0, total):
            self._show()

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *error: object) -> None:
        interrupted = error and error[0] is KeyboardInterrupt
        self._text = "stopped; everything is kept, and the same call goes on" if interrupted else "over"
        self._show()

    def _show(self) -> None:
        picture = self._display.HTML(self.as_html())
        if self._handle is None:
            self._handle = self._display.display(picture, display_id=True)
        else:
            self._handle.update(picture)

    def as_html(self) -> str:
        """The bar, what is left, and the notices so far."""
        made = self._ended + sum(self._share.values())
        left = ""
        if self._before < made < self._cells:
            seconds = (time.monotonic() - self._begun) * (self._cells - made) / (made - self._before)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
        count = f"{self._ended} of {self._cells} trainings{left}" if self._cells else ""
        lines = [escape(text) for text in (" – ".join(filter(None, (count, self._text))), *self._notices)]
        return f'<progress max="{self._cells or 1}" value="{made:.3f}"></progress> {"<br>".join(lines)}'
