"""What the records support: estimates with intervals, each norm at its best setting, and the warnings.

The statistics are `normlab.study.statistics` and the verdict is `normlab.study.verdict`; here they meet the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normlab.report.records import Cell, Study, setting_of
from normlab.study.statistics import Interval, interval
from normlab.study.verdict import edge_warnings, listed

_OPEN = ("pending", "running", "interrupted", "paused")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, and the values; `low` and `high` are NaN for a single seed."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low)

    def margin(self, scale: float = 100, digits: int = 1) -> str:
        """The half width as text; in percent, one that exceeds the whole is ">100"."""
        return ">100" if scale == 100 and self.half_width > 1 else f"{scale * self.half_width:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values, those that are not finite left out."""
    return _with_values(interval(values), [value for value in values if math.isfinite(value)])


def _with_values(found: Interval, values: Sequence[float]) -> Estimate:
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    return Estimate(found.mean, low, high, tuple(values))


def contenders(study: Study) -> dict[str, list[Cell]]:
    """Every norm's finished cells at its own best setting, the norm to use first, then by validation."""
    judged = study.judged
    chosen = {norm: study.done(norm, setting_of(axes)) for norm, axes in judged.settings.items()}
    return dict(sorted(chosen.items(), key=lambda item: (item[0] != judged.best, -_validation(item[1]))))


def accuracies(study: Study, field: dict[str, list[Cell]]) -> dict[str, Estimate]:
    """The test accuracy of each contender, or what is compared in its place, as the study judged it."""
    return {
        norm: _with_values(found, [study.metric.of(c.test) for c in field[norm]])
        for norm, found in study.judged.intervals.items()
    }


def warnings(study: Study) -> list[str]:
    """Warnings to read before believing the figures."""
    found = []
    for status in dict.fromkeys(cell.status for cell in study.cells if cell.status not in ("done", *_OPEN)):
        cells = [cell for cell in study.cells if cell.status == status]
        named = [f"{cell.norm} (seed {cell.seed}{_format_reason(cell)})" for cell in cells]
        shown = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
        found.append(f"{len(cells)} of {len(study.cells)} cells {status}: {shown}. They are not in the averages.")
    if open_ := sum(cell.status in _OPEN for cell in study.cells):
        verb = "is" if open_ == 1 else "are"
        found.append(f"{open_} of {len(study.cells)} cells {verb} not finished; what is said here may change.")
    counts = {norm: len(cells) for norm, cells in contenders(study).items()}
    single = [norm for norm, count in counts.items() if count == 1]
    if single:
        whom = _list_norms(single, study)
        verb = "was" if whom == "Every norm" or len(single) == 1 else "were"
        found.append(f"{whom} {verb} trained with a single seed: no interval, and small differences are chance.")
    elif len(set(counts.values())) > 1:
        found.append("Some norms have fewer finished seeds than others; what is said of them is less sure.")
    tuning = study.raw.get("tuning")
    return found + (edge_warnings(tuning) if tuning else _edges(study))


def _edges(study: Study) -> list[str]:
    """The best learning rate at the end of the list that was tried is a reason to try further."""
    rates = sorted({float(cell.axes["lr"]) for cell in study.cells if "lr" in cell.axes})
    if len(rates) < 2:
        return []
    low: list[str] = []
    high: list[str] = []
    for norm, cells in contenders(study).items():
        rate = float(cells[0].axes["lr"])
        (low if rate == rates[0] else high if rate == rates[-1] else []).append(norm)
    sides = ((low, "smallest", rates[0]), (high, "largest", rates[-1]))
    return [
        f"{whom} did best at the {side} learning rate tried ({rate:g}): the optimum may lie beyond it."
        for norms, side, rate in sides
        if (whom := _list_norms(norms, study))
    ]


def _list_norms(norms: Sequence[str], study: Study) -> str:
    """The norms by name, "Every norm" for all of them, and nothing for none."""
    if len(norms) > 1 and set(norms) == set(study.norms):
        return "Every norm"
    return listed(norms) if norms else ""


def _validation(cells: Sequence[Cell]) -> float:
    mean = estimate([cell.last("val_accuracy") for cell in cells]).mean
    return -math.inf if math.isnan(mean) else mean


def _format_reason(cell: Cell) -> str:
    if cell.reason:
        return f": {cell.reason}"
    return f", epoch {len(cell.epochs)}" if cell.status == "diverged" else ""
