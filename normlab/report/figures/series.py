"""One metric of one norm over epochs: the values of its seeds, and what a chart shows of each epoch, made once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlab.report.evidence import estimate
from normlab.report.figures.parts import MOST_SEED_LINES, plus_minus, row
from normlab.report.records import Cell, number


@dataclass(frozen=True)
class Point:
    """What a chart shows of one norm at one epoch: the row of its line and band, those of its seeds, and words."""

    mean: float
    band: Mapping[str, Any]
    seeds: Sequence[Mapping[str, Any]]
    text: str


class Series:
    """The values of a norm's seeds by epoch; a point is made when it is asked for, and again when a value has changed.

    `share` says that the metric is a share of 1, shown in percent.
    """

    def __init__(self, norm: str, seeds: Sequence[int], *, share: bool) -> None:
        self._norm, self._seeds = norm, list(seeds)
        self._scale, self._digits = (100.0, 1) if share else (1.0, 3)
        self._values: dict[int, array[float]] = {}  # a value of each seed, NaN where there is none
        self._counts: dict[int, int] = {}  # of values that there are
        self._points: dict[int, Point] = {}

    @property
    def epochs(self) -> list[int]:
        """The epochs of which there is a value."""
        return [epoch for epoch, count in self._counts.items() if count]

    def put(self, place: int, values: Mapping[int, float]) -> None:
        """Take the finite ones of these, by epoch, for the values of one seed, given by its place among the seeds."""
        for epoch in self._values.keys() | values.keys():
            new = values.get(epoch, math.nan)
            if not math.isfinite(new):
                new = math.nan
            if epoch not in self._values:
                self._values[epoch] = array("d", [math.nan]) * len(self._seeds)
                self._counts[epoch] = 0
            old = self._values[epoch][place]
            if new == old or (new != new and old != old):
                continue
            self._values[epoch][place] = new
            self._counts[epoch] += (new == new) - (old == old)
            self._points.pop(epoch, None)

    def point(self, epoch: int) -> Point | None:
        """What a chart shows of an epoch; None where there is no value."""
        if epoch not in self._points and self._counts.get(epoch):
            self._points[epoch] = self._make(epoch)
        return self._points.get(epoch)

    def _make(self, epoch: int) -> Point:
        values = {seed: v for seed, v in zip(self._seeds, self._values[epoch], strict=True) if v == v}
        at, scale = estimate(list(values.values())), self._scale
        # the interval of two seeds is six times as wide as their distance and would show nothing
        low, high = (at.low, at.high) if len(values) > 2 else (at.mean, at.mean)
        several = list(values.items())[:MOST_SEED_LINES] if len(values) > 1 else []
        return Point(
            at.mean,
            row(norm=self._norm, epoch=epoch, mean=scale * at.mean, low=scale * low, high=scale * high),
            [row(norm=self._norm, seed=seed, epoch=epoch, value=scale * value) for seed, value in several],
            plus_minus(at, scale, self._digits),
        )


def series_of(norm: str, cells: Iterable[Cell], column: str, *, share: bool) -> Series:
    """A metric of a norm's cells."""
    of_seed: dict[int, dict[int, float]] = {}
    for cell in cells:
        values = {int(number(record["epoch"])): number(record.get(column)) for record in cell.epochs}
        of_seed.setdefault(cell.seed, {}).update(values)
    made = Series(norm, list(of_seed), share=share)
    for place, values in enumerate(of_seed.values()):
        made.put(place, values)
    return made
