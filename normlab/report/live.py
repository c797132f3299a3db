"""What a study that may still run looks like now, read from its store without ever making it wait."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normlab.errors import NormlabError, UsageError
from normlab.report import theme
from normlab.report.figures.curves import drawn
from normlab.report.figures.series import Series
from normlab.report.seen import NO_EPOCHS, Epochs, Seen
from normlab.study.keeping.store import FILE, FINISHED, Store, StoredCell
from normlab.study.running.overview import live_states
from normlab.study.verdict import judge_results

PAGE = 50
_ORDER = ("running", "failed", "diverged", "interrupted", "pending", "paused", "done")
MOST_AT_ONCE = 100  # cells that are judged while the page waits
_TOGETHER = 200  # cells that are read at a time for a judgement, so that the page need not wait for long
_REST = 10  # a judgement that takes a second is followed by so many without one
MOST_TIMED = 40  # cells whose epochs the time left is estimated from
MOST_SETTINGS = 8  # whose curves are kept, those looked at last
STALE_SECONDS = 60.0
CURVES = (
    ("train_loss", "Training loss", False),
    ("val_loss", "Validation loss", False),
    ("train_accuracy", "Training accuracy", True),
    ("val_accuracy", "Validation accuracy", True),
)


class LiveStudy:
    """The study in a directory, as of each call; what has not changed is not read, summed up or judged again.

    Of a directory of several studies `number` says which, by default the one begun last. Raises UsageError where there
    is no store or no study of that number.
    """

    def __init__(self, directory: Path, number: int | None = None) -> None:
        if not (directory / FILE).is_file():
            raise UsageError(f"{directory} holds no study ({FILE} is not there); start one with `normlab compare`")
        self.directory = directory
        self._seen = Seen(number)
        self._curves: OrderedDict[tuple[int, ...], _Curves] = OrderedDict()  # by the cells of a setting
        self._judged: tuple[Mapping[int, str], str] = {}, ""  # what the last verdict was made of, and it
        self._judging: threading.Thread | None = None
        self._judgements = 0
        self._due = False  # whether there is more to judge
        self._rested_at = 0.0
        self._lock = threading.Lock()
        if number is not None:
            self.norms()  # so that a number that is not there is refused at once

    def mark(self) -> tuple[Any, ...]:
        """Something that changes with every commit to the store, and with the verdict; cheap to ask for."""
        return (*self._stamps(), self._judgements, self._due and time.monotonic() >= self._rested_at)

    def _stamps(self) -> list[tuple[int, int]]:
        return [_stamp(self.directory / f"{FILE}{suffix}") for suffix in ("", "-wal")]

    def state(self, page: int = 0, status: str = "") -> dict[str, Any]:
        """Counts, time left, the last sign of life, and one page of cells, with `status` only those in it."""
        with self._lock, Store(self.directory, readonly=True) as store:
            cells = self._look(store)
            states = live_states(self.directory, cells)
            epochs = self._epochs_done(store, cells, states)
            shown = sorted((c for c in cells if status in ("", states[c.id])), key=lambda c: _ORDER.index(states[c.id]))
            pages = max(1, -(-len(shown) // PAGE))
            page = min(max(page, 0), pages - 1)
            seconds = self._seconds_per_epoch(store, cells, states)
            layout = self._seen.layout
            return {
                "name": self.directory.resolve().name,
                "verdict": self._verdict(store, cells, states),
                "counts": dict(Counter(states.values())),
                "cells": len(cells),
                "epochs": sum(epochs.values()),
                "planned": sum(c.cell.epochs for c in cells),
                "seconds_left": _seconds_left(cells, states, epochs, seconds),
                "age": self._age(),
                "stale": self._why_stale(states, seconds),
                "settings": layout.names,
                "page": page,
                "pages": pages,
                "rows": [
                    [
                        states[c.id],
                        c.cell.norm,
                        str(c.cell.seed),
                        f"{epochs[c.id]}/{c.cell.epochs}",
                        layout.names[layout.number[c.id]],
                        c.reason or "",
                    ]
                    for c in shown[page * PAGE : (page + 1) * PAGE]
                ],
            }

    def figures(self, setting: int = -1) -> list[dict[str, Any]]:
        """The curves of one setting so far, by the number that `state` gives it; by default the busiest one."""
        with self._lock, Store(self.directory, readonly=True) as store:
            cells, layout = self._look(store), self._seen.layout
            if not layout.names:
                return []
            if not 0 <= setting < len(layout.names):
                setting = self._busiest(cells)
            own = layout.cells[setting]
            kept = self._curves.pop(tuple(own), None)
            if kept is None or kept.norms != layout.norms:
                kept = _Curves(layout.norms, [self._seen.cells[cell] for cell in own])
            self._curves[tuple(own)] = kept
            if len(self._curves) > MOST_SETTINGS:
                self._curves.popitem(last=False)
            return kept.drawn({cell: self._seen.epochs(store, self._seen.cells[cell]) for cell in own})

    def norms(self) -> list[str]:
        """The norms of the study, in its order."""
        with self._lock, Store(self.directory, readonly=True) as store:
            self._look(store)
            return self._seen.layout.norms

    def _look(self, store: Store) -> list[StoredCell]:
        self._seen.look(store)
        return list(self._seen.cells.values())

    def _busiest(self, cells: Sequence[StoredCell]) -> int:
        """The setting where cells are running; else the one where most are done."""
        number = self._seen.layout.number
        running = Counter(number[c.id] for c in cells if c.status == "running")
        done = Counter(number[c.id] for c in cells if c.status == "done")
        ((busiest, _), *_) = (running or done or Counter([0])).most_common(1)
        return busiest

    def _verdict(self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]) -> str:
        """The sentence of the cells that have ended, judged anew when another one has.

        That of many cells takes its time: until it is there, it is the one before, and `mark` says when it changes, or
        when there is another to ask for.
        """
        marks = self._seen.marks
        ended = {c.id: marks.get(c.id, "") for c in cells if states[c.id] in FINISHED}
        self._due = not ended or ended != self._judged[0]
        if self._judging is not None and not self._judging.is_alive():
            self._judging = None
        if self._judging is None and self._due and time.monotonic() >= self._rested_at:
            facts = self._seen.study.facts if self._seen.study else {}
            judged = [c for c in cells if c.id in ended or not ended]
            if len(ended) <= MOST_AT_ONCE:
                self._judge(ended, facts, [self._record(store, c, states[c.id]) for c in judged])
            else:
                self._judging = threading.Thread(
                    target=self._judge_later, args=(ended, facts, judged, states), daemon=True
                )
                self._judging.start()
        return self._judged[1]

    def _judge_later(
        self,
        ended: Mapping[int, str],
        facts: Mapping[str, Any],
        cells: Sequence[StoredCell],
        states: Mapping[int, str],
    ) -> None:
        """Judge beside the page, reading a few cells at a time; a store that is gone is for the next look to report."""
        started = time.monotonic()
        records: list[dict[str, Any]] = []
        try:
            for first in range(0, len(cells), _TOGETHER):
                with self._lock, Store(self.directory, readonly=True) as store:
                    part = cells[first : first + _TOGETHER]
                    records += [self._record(store, c, states[c.id]) for c in part]
            self._judge(ended, facts, records)
        except (NormlabError, OSError):
            pass
        finally:
            self._rested_at = time.monotonic() + _REST * (time.monotonic() - started)

    def _judge(self, ended: Mapping[int, str], facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        results = {"cells": records, "environment": facts, "tuning": facts.get("tuning", [])}
        self._judged = ended, judge_results(results).sentence
        self._judgements += 1

    def _record(self, store: Store, stored: StoredCell, state: str) -> dict[str, Any]:
        """A cell as in results.json, as far as a verdict reads it."""
        epochs, test = self._seen.epochs(store, stored), stored.outcome.get("test")
        return {**stored.cell.columns(), "status": state, "epochs": epochs, "test": test}

    def _epochs_done(self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]) -> dict[int, int]:
        """How many epochs each cell has; those that are done have all of them, unless they may end early."""
        early = any(c.cell.patience for c in cells)
        return {
            c.id: c.cell.epochs if states[c.id] == "done" and not early else self._seen.count(store, c) for c in cells
        }

    def _seconds_per_epoch(
        self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]
    ) -> dict[int, list[float]]:
        """Seconds of an epoch by batch size, as the latest cells at work or done have them."""
        at_work = [c for c in cells if states[c.id] in ("running", "interrupted")]
        timed = [*at_work, *[c for c in reversed(cells) if states[c.id] == "done"]][:MOST_TIMED]
        found: dict[int, list[float]] = {}
        for stored in timed:
            seconds = self._seen.epochs(store, stored).column("seconds")
            times = [value for value in seconds if value == value]
            if times:
                found.setdefault(stored.cell.batch_size, []).append(float(np.median(times)))
        return found

    def _age(self) -> float:
        """Seconds since the last commit."""
        latest = max(stamp[0] for stamp in self._stamps()) / 1e9
        return max(0.0, time.time() - latest)

    def _why_stale(self, states: Mapping[int, str], seconds: Mapping[int, Sequence[float]]) -> str:
        """Why the page may be out of date, or an empty string."""
        counts = Counter(states.values())
        if not counts["running"]:
            open_ = counts["pending"] + counts["interrupted"]
            return f"Nobody is training; {open_} cells are left. The same command goes on with them." if open_ else ""
        longest = max((max(times) for times in seconds.values()), default=0.0)
        if self._age() > max(STALE_SECONDS, 5 * longest):
            return f"No sign of life for {_duration(self._age())}, though {counts['running']} cells should be running."
        return ""


class _Curves:
    """The curves of one setting: what its cells have recorded so far, and what was drawn of that."""

    def __init__(self, norms: Sequence[str], cells: Sequence[StoredCell]) -> None:
        self.norms = norms
        seeds: dict[str, list[int]] = {}
        self._places: dict[int, tuple[str, int]] = {}  # the norm of a cell, and its place among that norm's seeds
        for stored in cells:
            of_norm = seeds.setdefault(stored.cell.norm, [])
            self._places[stored.id] = stored.cell.norm, len(of_norm)
            of_norm.append(stored.cell.seed)
        self._series = {
            column: {norm: Series(norm, own, share=share) for norm, own in seeds.items()} for column, _, share in CURVES
        }
        self._shown: dict[int, Epochs] = dict.fromkeys(self._places, NO_EPOCHS)
        self._drawn: list[dict[str, Any]] = []

    def drawn(self, epochs: Mapping[int, Epochs]) -> list[dict[str, Any]]:
        """The figures of these epochs by cell; what was drawn last if they are the same."""
        changed = [cell for cell, found in epochs.items() if found is not self._shown[cell]]
        for cell in changed:
            norm, place = self._places[cell]
            numbers = [int(number) for number in epochs[cell].column("epoch")]
            for column, _, _ in CURVES:
                values = dict(zip(numbers, epochs[cell].column(column), strict=True))
                self._series[column][norm].put(place, values)
            self._shown[cell] = epochs[cell]
        if changed or not self._drawn:
            styles = theme.styles(self.norms)
            made = [drawn(self._series[column], title, column, styles, share=share) for column, title, share in CURVES]
            self._drawn = [{"key": f.key, "title": f.title, "caption": f.caption, "spec": f.spec} for f in made]
        return self._drawn


def _seconds_left(
    cells: Sequence[StoredCell],
    states: Mapping[int, str],
    epochs: Mapping[int, int],
    seconds: Mapping[int, Sequence[float]],
) -> float | None:
    """Seconds for the epochs left at the pace so far, as many cells at once as now; None before the first epoch."""
    everything = [value for values in seconds.values() for value in values]
    running = sum(state == "running" for state in states.values())
    if not everything or not running:
        return None
    usual = float(np.mean(everything))
    pace = {batch_size: float(np.mean(values)) for batch_size, values in seconds.items()}
    left = 0.0
    for stored in cells:
        if states[stored.id] in ("pending", "running", "interrupted"):
            left += (stored.cell.epochs - epochs[stored.id]) * pace.get(stored.cell.batch_size, usual)
    return left / running


def _stamp(path: Path) -> tuple[int, int]:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
