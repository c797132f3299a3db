"""The driver of a study: claims cells, hands them to an executor, and writes down what comes back.

It alone writes the store. Several drivers may share one store: a cell belongs to the driver that holds its kernel lock,
and one whose processes died is free at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from normlab.errors import DataError
from normlab.study.axes import Cell
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import FINISHED, Store, StoredCell
from normlab.study.running.jobs import Event, Executor, Job

POLL_SECONDS = 0.5
MOST_FAILURES = 3  # of a cell, over all runs, before it is left alone
MOST_LOSSES = 3  # of a cell's process, without an epoch in between, before the cell counts as failed


class Listener(Protocol):
    """Hears what happens, for people."""

    def expect(self, cells: int, done: int) -> None: ...
    def started(self, job: Job) -> None: ...
    def epoch(self, job: Job, record: dict[str, Any]) -> None: ...
    def ended(self, job: Job, status: str, reason: str | None) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass
class Driver:
    """Brings cells to their end: `make_job` turns a stored cell into a job, `executor` trains it.

    With `retry_failed` a cell that failed often is tried once more; with `fail_fast` the first failure ends the
    run. `environment` is entered with every attempt.
    """

    store: Store
    locks: CellLocks
    executor: Executor
    make_job: Callable[[StoredCell], Job]
    listener: Listener
    environment: dict[str, Any] = field(default_factory=dict)
    retry_failed: bool = False
    fail_fast: bool = False
    deadline: float | None = None  # on time.monotonic's clock; what is under way then is paused
    _until: int | None = None
    _running: dict[int, tuple[int, Job]] = field(default_factory=dict)  # cell -> its attempt
    _lost: dict[int, int] = field(default_factory=dict)
    _todo: deque[int] = field(default_factory=deque)
    _disk: str | None = None
    _failed: bool = False

    def run(self, cells: Iterable[int], until: int | None = None) -> None:
        """Train every cell that is not done; returns when all are settled, by this driver or by another.

        With `until` cells pause after that many epochs; when the deadline has passed, wherever they are. Raises
        DataError when the disk is full. Whatever ends it, what was recorded stays, and cells that were under way
        are free for the next run.
        """
        self._todo, self._until = deque(cells), until
        while not self._is_over():
            self._start_what_fits()
            if self._running:
                self.executor.wait(self._handle_event, POLL_SECONDS)
            elif self._todo:
                time.sleep(POLL_SECONDS)  # in other hands; to be taken over if they let go
        if self._disk is not None:
            raise DataError(f"{self._disk}; free some space and run the same command again")
        if self._running:
            self.executor.close()
            for _, job in list(self._running.values()):
                self._end(job, "paused", {"reason": "the time was up" if self.late() else "another cell failed"})

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def _is_over(self) -> bool:
        failed = self.fail_fast and self._failed
        return self._disk is not None or failed or self.late() or not (self._todo or self._running)

    def _start_what_fits(self) -> None:
        for _ in range(len(self._todo)):
            if not self.executor.free():
                return
            cell = self._todo.popleft()
            if not self.locks.acquire(cell):
                self._todo.append(cell)
            elif not self._start(cell):
                self.locks.release(cell)

    def _start(self, cell: int) -> bool:
        """Start a cell whose lock is held; False if there is nothing to do."""
        (stored,) = self.store.cells([cell])
        if stored.status == "failed" and not self.retry_failed and self.store.failures(cell) >= MOST_FAILURES:
            return False
        attempt = self.store.begin_attempt(cell, self.environment)
        if attempt is None:
            return False
        job = replace(self.make_job(stored), until=self._until)
        self._running[cell] = attempt, job
        self.listener.started(job)
        self.executor.start(job)
        return True

    def _handle_event(self, job: Job, event: Event) -> None:
        kind = event["event"]
        if kind == "epoch":
            if self.store.add_epoch(job.id, event["record"]):
                self._lost.pop(job.id, None)
                self.listener.epoch(job, event["record"])
        elif kind == "notice":
            self.listener.notice(f"{job.cell.label()}: {event['text']}")
        elif kind == "disk":
            self._disk = event["reason"]
        elif kind == "lost":
            self._requeue_lost(job, event["reason"])
        else:
            self._end(job, event["status"], event)

    def _requeue_lost(self, job: Job, reason: str) -> None:
        """Its process died: the cell goes back to the others, unless it keeps killing them."""
        self._lost[job.id] = self._lost.get(job.id, 0) + 1
        if self._lost[job.id] >= MOST_LOSSES:
            self._end(job, "failed", {"reason": f"{reason}, {MOST_LOSSES} times; out of memory, perhaps"})
            return
        self.listener.notice(f"{job.cell.label()}: {reason}; it is taken up again from its last checkpoint")
        self._end(job, "interrupted", {"reason": reason})
        self._todo.appendleft(job.id)

    def _end(self, job: Job, status: str, event: Event) -> None:
        facts = {name: event.get(name) for name in ("reason", "traceback", "outcome")}
        attempt, _ = self._running.pop(job.id)
        self.store.end_attempt(attempt, job.id, status, **facts)
        self.locks.release(job.id)
        self._failed |= status == "failed"
        if status != "interrupted":
            self.listener.ended(job, status, facts["reason"])


@dataclass
class Study:
    """A study under way: what is entered in the store about it, and the driver that runs its cells."""

    spec: dict[str, Any]
    facts: dict[str, Any]
    data_hash: str
    driver: Driver
    prepare: Callable[[list[int]], None] | None = None  # called with the ids of cells that are entered, once for each
    _prepared: set[int] = field(default_factory=set)

    def enter(self, cells: Sequence[Cell]) -> list[int]:
        """Enter cells, report to the listener how many there are and are done, and return their ids."""
        store = self.driver.store
        ids = store.begin_study(self.spec, self.facts, list(cells), self.data_hash)
        new = [cell for cell in ids if cell not in self._prepared]
        if self.prepare is not None and new:
            self.prepare(new)
        self._prepared.update(new)
        done = sum(stored.status in FINISHED for stored in store.cells(ids))
        if done:
            self.driver.listener.notice(f"{done} of {len(ids)} cells are done already")
        self.driver.listener.expect(len(ids), done)
        return ids
