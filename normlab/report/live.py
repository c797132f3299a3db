"""What a study that may still run looks like now, read from its store without ever making it wait."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.report import theme
from normlab.report.figures.curves import curves
from normlab.report.records import Cell, setting_of
from normlab.study.keeping.store import FILE, FINISHED, Store, StoredCell
from normlab.study.running.overview import live_states
from normlab.study.verdict import judge_results

PAGE = 50
_ORDER = ("running", "failed", "diverged", "interrupted", "pending", "paused", "done")
MOST_AT_ONCE = 500  # cells that are judged while the page waits
MOST_TIMED = 40  # cells whose epochs the time left is estimated from
STALE_SECONDS = 60.0
CURVES = (
    ("train_loss", "Training loss", False),
    ("val_loss", "Validation loss", False),
    ("train_accuracy", "Training accuracy", True),
    ("val_accuracy", "Validation accuracy", True),
)


class LiveStudy:
    """The study in a directory, as of each call; what cannot change any more is read once.

    Of a directory of several studies `number` says which, by default the one begun last. Raises UsageError where there
    is no store or no study of that number.
    """

    def __init__(self, directory: Path, number: int | None = None) -> None:
        if not (directory / FILE).is_file():
            raise UsageError(f"{directory} holds no study ({FILE} is not there); start one with `normlab compare`")
        self.directory, self._number = directory, number
        self._settled: dict[int, list[dict[str, Any]]] = {}
        self._seen: dict[int, tuple[str, StoredCell]] = {}  # cells by id, as they were read last
        self._parts: dict[int, tuple[str, ...]] = {}  # their settings
        self._drawn: tuple[Any, list[dict[str, Any]]] = None, []  # what the last curves were drawn of, and they
        self._judged: tuple[tuple[int, ...], str] = (), ""
        self._judging: threading.Thread | None = None
        self._judgements = 0
        self._lock = threading.Lock()
        if number is not None:
            self.norms()  # so that a number that is not there is refused at once

    def mark(self) -> tuple[Any, ...]:
        """Something that changes with every commit to the store, and with the verdict; cheap to ask for."""
        return (*self._stamps(), self._judgements)

    def _stamps(self) -> list[tuple[int, int]]:
        return [_stamp(self.directory / f"{FILE}{suffix}") for suffix in ("", "-wal")]

    def state(self, page: int = 0, status: str = "") -> dict[str, Any]:
        """Counts, time left, the last sign of life, and one page of cells, with `status` only those in it."""
        with self._lock, Store(self.directory, readonly=True) as store:
            cells = self._cells(store)
            states = live_states(self.directory, cells)
            epochs = self._epochs_done(store, cells, states)
            shown = sorted((c for c in cells if status in ("", states[c.id])), key=lambda c: _ORDER.index(states[c.id]))
            pages = max(1, -(-len(shown) // PAGE))
            page = min(max(page, 0), pages - 1)
            seconds = self._seconds_per_epoch(store, cells, states)
            names = self._settings(cells)
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
                "settings": list(names.values()),
                "page": page,
                "pages": pages,
                "rows": [
                    [
                        states[c.id],
                        c.cell.norm,
                        str(c.cell.seed),
                        f"{epochs[c.id]}/{c.cell.epochs}",
                        names[self._name(c)],
                        c.reason or "",
                    ]
                    for c in shown[page * PAGE : (page + 1) * PAGE]
                ],
            }

    def figures(self, setting: int = -1) -> list[dict[str, Any]]:
        """The curves of one setting so far, by the number that `state` gives it; by default the busiest one."""
        with self._lock, Store(self.directory, readonly=True) as store:
            cells = self._cells(store)
            names = list(self._settings(cells))
            if not names:
                return []
            if not 0 <= setting < len(names):
                setting = self._busiest(cells, names)
            norms = list(dict.fromkeys(c.cell.norm for c in cells))
            own = [c for c in cells if self._name(c) == names[setting]]
            drawn_of = norms, [(c.id, c.status, c.reason, self._count(store, c)) for c in own]
            if drawn_of == self._drawn[0]:
                return self._drawn[1]
            chosen: dict[str, list[Cell]] = {}
            for stored in own:
                chosen.setdefault(stored.cell.norm, []).append(_as_record(stored, self._epochs(store, stored)))
            styles = theme.styles(norms)
            drawn = [curves(chosen, column, title, column, styles, share=share) for column, title, share in CURVES]
            said = [{"key": f.key, "title": f.title, "caption": f.caption, "spec": f.spec} for f in drawn]
            self._drawn = drawn_of, said
            return said

    def norms(self) -> list[str]:
        """The norms of the study, in its order."""
        with self._lock, Store(self.directory, readonly=True) as store:
            return list(dict.fromkeys(c.cell.norm for c in self._cells(store)))

    def _cells(self, store: Store) -> list[StoredCell]:
        """The study's cells; only those are read whose rows have changed since the last time."""
        study, marks = store.study(self._number), store.marks()
        if study is None:
            return []
        if marks is None:
            self._parts.clear()
            return store.cells(study.cells)
        new = [cell for cell in study.cells if cell not in self._seen or self._seen[cell][0] != marks.get(cell)]
        for stored in store.cells(new):
            self._seen[stored.id] = marks[stored.id], stored
            self._parts.pop(stored.id, None)
        return [self._seen[cell][1] for cell in study.cells]

    def _setting(self, stored: StoredCell) -> tuple[str, ...]:
        if stored.id not in self._parts:
            self._parts[stored.id] = setting_of(_axes(stored))
        return self._parts[stored.id]

    def _name(self, stored: StoredCell) -> str:
        return ", ".join(self._setting(stored))

    def _settings(self, cells: Sequence[StoredCell]) -> dict[str, str]:
        """Every setting, in full and by what distinguishes it from the others."""
        parts = list(dict.fromkeys(map(self._setting, cells)))
        same = set.intersection(*map(set, parts)) if len(parts) > 1 else set(parts[0][3:]) if parts else set()
        short = [", ".join(part for part in setting if part not in same) for setting in parts]
        return {", ".join(setting): name for setting, name in zip(parts, short, strict=True)}

    def _busiest(self, cells: Sequence[StoredCell], names: Sequence[str]) -> int:
        """The setting where cells are running; else the one where most are done."""
        running = Counter(self._name(c) for c in cells if c.status == "running")
        done = Counter(self._name(c) for c in cells if c.status == "done")
        (name, _), *_ = (running or done or Counter(names)).most_common(1)
        return list(names).index(name)

    def _verdict(self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]) -> str:
        """The sentence of the cells that have ended, judged anew when another one has.

        That of many cells takes its time: until it is there, it is the one before, and `mark` says when it changes.
        """
        ended = tuple(c.id for c in cells if states[c.id] in FINISHED)
        if self._judging is not None and not self._judging.is_alive():
            self._judging = None
        if self._judging is None and (ended != self._judged[0] or not ended):
            study = store.study(self._number)
            facts = study.facts if study else {}
            records = [
                {**_axes(c), "status": states[c.id], "epochs": self._epochs(store, c), "test": c.outcome.get("test")}
                for c in cells
                if states[c.id] in FINISHED or not ended
            ]
            results = {"cells": records, "environment": facts, "tuning": facts.get("tuning", [])}

            def judge() -> None:
                self._judged = ended, judge_results(results).sentence
                self._judgements += 1

            if len(ended) <= MOST_AT_ONCE:
                judge()
            else:
                self._judging = threading.Thread(target=judge, daemon=True)
                self._judging.start()
        return self._judged[1]

    def _count(self, store: Store, stored: StoredCell) -> int:
        """How many epochs a cell has."""
        return 0 if stored.status == "pending" else len(self._epochs(store, stored))

    def _epochs(self, store: Store, stored: StoredCell) -> list[dict[str, Any]]:
        if stored.status in FINISHED and stored.id in self._settled:
            return self._settled[stored.id]
        records = store.epochs(stored.id)
        slim = [{k: v for k, v in record.items() if not isinstance(v, dict)} for record in records]
        self._settled.pop(stored.id, None)
        if stored.status in FINISHED:
            self._settled[stored.id] = slim
        return slim

    def _epochs_done(self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]) -> dict[int, int]:
        """How many epochs each cell has; only those that neither wait nor are done need a look."""
        known: dict[str, Callable[[StoredCell], int]] = {
            "pending": lambda c: 0,
        }
        if not any(c.cell.patience for c in cells):  # else one may have ended early
            known["done"] = lambda c: c.cell.epochs
        return {c.id: known[s](c) if (s := states[c.id]) in known else len(self._epochs(store, c)) for c in cells}

    def _seconds_per_epoch(
        self, store: Store, cells: Sequence[StoredCell], states: Mapping[int, str]
    ) -> dict[int, list[float]]:
        """Seconds of an epoch by batch size, as the latest cells at work or done have them."""
        at_work = [c for c in cells if states[c.id] in ("running", "interrupted")]
        timed = [*at_work, *[c for c in reversed(cells) if states[c.id] == "done"]][:MOST_TIMED]
        found: dict[int, list[float]] = {}
        for stored in timed:
            times = [record["seconds"] for record in self._epochs(store, stored) if "seconds" in record]
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


def _axes(stored: StoredCell) -> dict[str, Any]:
    return stored.cell.columns()


def _as_record(stored: StoredCell, epochs: list[dict[str, Any]]) -> Cell:
    return Cell(stored.cell.norm, stored.cell.seed, _axes(stored), stored.status, stored.reason or "", epochs, {})


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
    left = 0.0
    for stored in cells:
        if states[stored.id] in ("pending", "running", "interrupted"):
            pace = seconds.get(stored.cell.batch_size) or everything
            left += (stored.cell.epochs - epochs[stored.id]) * float(np.mean(pace))
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
