"""What was read of a study that may still run, so that the next look at its store reads only what is new.

Every row of a store has a digest, which says whether it has changed; a cell that is at rest (neither running nor
changed) has no new epochs. A store of an older version has no digests and is read whole at every look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from normlab.report.records import number, setting_of
from normlab.study.keeping.store import Store, StoredCell, StoredStudy
from normlab.study.metric import METRICS

# of an epoch's record, what the live page draws, estimates the time left from, or judges by
COLUMNS = tuple(
    dict.fromkeys(
        ["epoch", "seconds", "train_loss", "train_accuracy", *[f"val_{metric.column}" for metric in METRICS.values()]]
    )
)


class Epochs(Sequence[Mapping[str, float]]):
    """The figures of a cell's epochs, a row of numbers each; the records are made when they are asked for."""

    def __init__(self, figures: NDArray[np.float64]) -> None:
        self.figures = figures

    @classmethod
    def read(cls, records: Sequence[Mapping[str, Any]]) -> Epochs:
        """The figures in records of the store; what is missing is NaN."""
        rows = [[number(record.get(column)) for column in COLUMNS] for record in records]
        return cls(np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS)))

    def column(self, name: str) -> list[float]:
        """One figure of every epoch."""
        return self.figures[:, COLUMNS.index(name)].tolist()

    def __len__(self) -> int:
        return len(self.figures)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, float]: ...
    @overload
    def __getitem__(self, place: slice) -> Epochs: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, float] | Epochs:
        if isinstance(place, slice):
            return Epochs(self.figures[place])
        return dict(zip(COLUMNS, self.figures[place].tolist(), strict=True))

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return (dict(zip(COLUMNS, row.tolist(), strict=True)) for row in self.figures)


NO_EPOCHS = Epochs.read([])


@dataclass(frozen=True)
class Layout:
    """What does not change while a study runs: its norms, its settings, and the cells (by id) of each.

    `names` are the settings by what distinguishes them; `number` is that of a cell's setting.
    """

    norms: list[str]
    names: list[str]
    number: dict[int, int]
    cells: list[list[int]]

    @classmethod
    def of(cls, cells: Sequence[StoredCell]) -> Layout:
        """The layout of these cells, all in their order."""
        parts = {stored.id: setting_of(stored.cell.columns()) for stored in cells}
        settings = {setting: number for number, setting in enumerate(dict.fromkeys(parts.values()))}
        if len(settings) > 1:
            same = set.intersection(*map(set, settings))
        else:
            same = set[str]().union(*(setting[3:] for setting in settings))
        of_setting: list[list[int]] = [[] for _ in settings]
        for cell, setting in parts.items():
            of_setting[settings[setting]].append(cell)
        return cls(
            norms=list(dict.fromkeys(stored.cell.norm for stored in cells)),
            names=[", ".join(part for part in setting if part not in same) for setting in settings],
            number={cell: settings[setting] for cell, setting in parts.items()},
            cells=of_setting,
        )


class Seen:
    """A study as it was at the last look; of a directory of several that of `number`, by default the last begun."""

    def __init__(self, number: int | None = None) -> None:
        self._number = number
        self._forget()

    def _forget(self) -> None:
        self._file: tuple[int, int] | None = None
        self._studies: dict[int, str] | None = None
        self.study: StoredStudy | None = None
        self.cells: dict[int, StoredCell] = {}
        self.marks: dict[int, str] = {}
        self.layout = Layout.of([])
        self._epochs: dict[int, tuple[str, tuple[tuple[int, str], ...], Epochs]] = {}
        self._counts: dict[int, tuple[str, int]] = {}

    def look(self, store: Store) -> None:
        """Read what has changed. Cells that have been lost are left out."""
        facts = store.path.stat()
        if self._file != (facts.st_dev, facts.st_ino):  # another store, or one that was saved from a damage
            self._forget()
            self._file = facts.st_dev, facts.st_ino
        studies, marks = store.marks_of_studies(), store.marks()
        if studies is None or studies != self._studies:
            self._studies, self.study = studies, store.study(self._number)
        wanted = self.study.cells if self.study else []
        if marks is None:
            there = {stored.id: stored for stored in store.cells()}
            self.marks = {}
        else:
            there = self.cells
            new = [cell for cell in wanted if cell in marks and self.marks.get(cell) != marks[cell]]
            there |= {stored.id: stored for stored in store.cells(new)}
            self.marks = {cell: marks[cell] for cell in wanted if cell in marks}
            wanted = list(self.marks)
        before = list(self.layout.number)
        self.cells = {cell: there[cell] for cell in wanted if cell in there}
        if before != list(self.cells):
            self.layout = Layout.of(list(self.cells.values()))
            for known in (self._epochs, self._counts):
                for cell in known.keys() - self.cells.keys():
                    del known[cell]

    def epochs(self, store: Store, stored: StoredCell) -> Epochs:
        """The epochs of a cell so far; the same object as long as they are the same."""
        mark = self.marks.get(stored.id)
        if mark is None:
            return Epochs.read(store.epochs(stored.id))
        if stored.status == "pending":
            return NO_EPOCHS
        read_at, digests, known = self._epochs.get(stored.id, ("", (), NO_EPOCHS))
        if stored.status != "running":
            if read_at != mark:
                self._epochs[stored.id] = mark, (), Epochs.read(store.epochs(stored.id))
            return self._epochs[stored.id][-1]
        there = tuple((store.marks_of_epochs(stored.id) or {}).items())
        if not digests or there[: len(digests)] != digests:  # it may have begun anew
            digests, known = (), NO_EPOCHS
        if len(there) > len(digests):
            records = store.epochs(stored.id, after=digests[-1][0] if digests else 0)
            new = Epochs.read(records[: len(there) - len(digests)])  # another one may have come meanwhile
            known = Epochs(np.concatenate([known.figures, new.figures]))
        self._epochs[stored.id] = mark, there, known
        return known

    def count(self, store: Store, stored: StoredCell) -> int:
        """How many epochs a cell has."""
        mark = self.marks.get(stored.id)
        if mark is None or stored.status in ("pending", "running") or self._epochs.get(stored.id, ("",))[0] == mark:
            return len(self.epochs(store, stored))
        if self._counts.get(stored.id, ("",))[0] != mark:
            self._counts[stored.id] = mark, store.count_epochs(stored.id)
        return self._counts[stored.id][1]
