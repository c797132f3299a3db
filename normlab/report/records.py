"""What a report is made of: the cells of a study, read from its directory and never changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from normlab.data._source import printable
from normlab.errors import DataError, UsageError
from normlab.study.axes import AXES, GROUPING
from normlab.study.ending import kept_of
from normlab.study.metric import Metric, metric_of
from normlab.study.verdict import Verdict, judge_results

EXPLAINED = "explain.json"  # written by `normlab explain`
# what a setting is called by, the axes that name it first
_SHOWN = sorted((axis for axis in AXES if axis.groups), key=lambda axis: not axis.named)


@dataclass(frozen=True)
class Cell:
    """One trained variant: a norm, a seed and the other axes of the study."""

    norm: str
    seed: int
    axes: Mapping[str, Any]
    status: str
    reason: str
    epochs: Sequence[Mapping[str, Any]]
    test: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def setting(self) -> tuple[str, ...]:
        """Everything but norm and seed, as text, so that cells of one setting can be compared."""
        return setting_of(self.axes)

    def last(self, metric: str) -> float:
        """A metric after the last epoch, or the best where that is tested; NaN where it was never recorded."""
        return number(kept_of(self.epochs, self.extra.get("best_epoch")).get(metric)) if self.epochs else math.nan

    def value(self, column: str) -> float:
        """`test_accuracy`, `val_macro_f1` ...: the test split's figure, or the last epoch's."""
        split, _, metric = column.partition("_")
        return number(self.test.get(metric)) if split == "test" else self.last(column)


@dataclass(frozen=True)
class Study:
    """The records of one directory."""

    name: str
    cells: Sequence[Cell]
    environment: Mapping[str, Any]
    raw: Mapping[str, Any]
    explained: Mapping[str, Any] | None = None
    records: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def norms(self) -> list[str]:
        """The norms, in the order in which the study names them."""
        return list(dict.fromkeys(cell.norm for cell in self.cells))

    @cached_property
    def settings(self) -> list[tuple[str, ...]]:
        """The combinations of the other axes, in the order in which the study names them."""
        return list(dict.fromkeys(cell.setting for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    @property
    def metric(self) -> Metric:
        """What the norms are compared by."""
        return metric_of(self.environment)

    @cached_property
    def judged(self) -> Verdict:
        """The verdict of the study's cells."""
        return judge_results({**self.raw, "cells": self.records})

    @property
    def document(self) -> dict[str, Any]:
        """The records as in results.json, with this verdict."""
        from normlab.study.keeping.records import with_verdict

        return with_verdict(self.raw, self.judged)

    def done(self, norm: str | None = None, setting: tuple[str, ...] | None = None) -> list[Cell]:
        """The cells that finished, of one norm and one setting where these are given."""
        return [
            cell
            for cell in self.cells
            if cell.status == "done" and norm in (None, cell.norm) and setting in (None, cell.setting)
        ]

    def label(self, setting: tuple[str, ...]) -> str:
        """What distinguishes this setting from the study's others; axes that never vary are left out."""
        constant = set.intersection(*map(set, self.settings)) if self.settings else set()
        return ", ".join(part for part in setting if part not in constant) or "the one setting"


def setting_of(axes: Mapping[str, Any]) -> tuple[str, ...]:
    """The axes other than norm and seed as text, e.g. ("batch 128", "optimizer sgd", "lr 0.1")."""
    return tuple(f"{axis.label} {axes[axis.column]}" for axis in _SHOWN if axes.get(axis.column) is not None)


def number(value: Any) -> float:
    """A recorded number; NaN for what is missing or was stored as text ("NaN", "Infinity")."""
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def read(directory: Path | str, number: int | None = None) -> Study:
    """Read the records of a study in `directory`: of that number, by default of the study begun last.

    Raises UsageError where there is no such directory or no study in it, DataError where the records cannot
    be understood.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"no study directory at {directory}; expected the --out directory of `normlab compare`")
    results = directory / "results.json"
    if (directory / "study.db").is_file():
        from normlab.study.keeping.records import gathered
        from normlab.study.keeping.store import Store

        with Store(directory, readonly=True) as store:
            raw = gathered(store, number)
    elif results.is_file():
        raw = _json(results)
    else:
        raise UsageError(
            f"{directory} holds no study: expected study.db or results.json; `normlab compare` writes both"
        )
    study = from_results(raw, name=printable(directory.resolve().name))
    explained = directory / EXPLAINED
    if not explained.is_file():
        return study
    found = _json(explained)
    # the directory may hold other studies, and the findings be of one of them
    own = not isinstance(found, Mapping) or found.get("study", raw.get("study")) == raw.get("study")
    return replace(study, explained=found) if own else study


def with_matters(study: Study, matters: float | None) -> Study:
    """The study with another bound of what matters, where one is given."""
    if matters is None:
        return study
    environment = {**study.environment, "matters": matters}
    return replace(study, environment=environment, raw={**study.raw, "environment": environment})


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def from_results(raw: Any, *, name: str = "study") -> Study:
    """The study in a `results.json` document; DataError names the first field that is not as documented."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("cells"), Sequence):
        raise DataError('results must be {"cells": [...], "environment": {...}}')
    environment = raw.get("environment", {})
    if not isinstance(environment, Mapping):
        raise DataError(f"results' environment must be an object, got {type(environment).__name__}")
    given = [record for record in raw["cells"] if isinstance(record, Mapping)]
    longest = max((len(record.get("epochs") or ()) for record in given), default=0)
    records = [_complete(position, record, longest) for position, record in enumerate(raw["cells"])]
    cells = [_cell(position, record) for position, record in enumerate(records)]
    return Study(name, cells, environment, raw, records=records)


def _complete(position: int, record: Any, longest: int) -> Mapping[str, Any]:
    """The record with what it may leave out: epochs, and how many were planned (as many as the longest cell has)."""
    if not isinstance(record, Mapping):
        raise DataError(f"cell {position} of the results must be an object, got {type(record).__name__}")
    return {"planned_epochs": longest, **record, "epochs": record.get("epochs") or []}


def _cell(position: int, record: Mapping[str, Any]) -> Cell:
    where = f"cell {position} of the results"
    for key, kind in (("norm", str), ("seed", int), ("status", str)):
        if not isinstance(record.get(key), kind):
            raise DataError(f"{where}: {key} must be {kind.__name__}, got {record.get(key)!r}")
    epochs, test = record.get("epochs") or [], record.get("test") or {}
    if not isinstance(epochs, Sequence) or not all(isinstance(epoch, Mapping) for epoch in epochs):
        raise DataError(f"{where}: epochs must be a list of objects")
    if not isinstance(test, Mapping):
        raise DataError(f"{where}: test must be an object, got {type(test).__name__}")
    if record["status"] == "done" and not (epochs and "val_accuracy" in epochs[-1] and "accuracy" in test):
        raise DataError(f"{where} is done; expected epochs with val_accuracy, and test.accuracy")
    known = {"norm", "seed", "status", "reason", "epochs", "test", *GROUPING}
    return Cell(
        norm=record["norm"],
        seed=record["seed"],
        axes={axis: record[axis] for axis in GROUPING if record.get(axis) is not None},
        status=record["status"],
        reason=str(record.get("reason") or ""),
        epochs=epochs,
        test=test,
        extra={key: value for key, value in record.items() if key not in known},
    )
