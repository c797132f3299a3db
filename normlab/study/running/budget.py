"""A study under a time budget: successive halving, so that time goes where the question is still open.

All variants (a variant is a cell regardless of its seed) train their first seed for a quarter of the epochs; the
better half of them by validation accuracy goes on to half of the epochs, the better half of those to the end. The
finalists then train all other seeds. If there is time left, what was set aside goes on, the best first. Whenever
the time is up, what is known is the answer, with the confidence that it deserves. Jamieson & Talwalkar 2016,
arXiv:1502.07943.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from normlab.errors import UsageError
from normlab.study.axes import Cell
from normlab.study.ending import kept_of
from normlab.study.metric import metric_of
from normlab.study.running.driver import Study

RUNGS = (4, 2, 1)  # a quarter, half and all of the epochs
FEWEST = 2  # finalists: a comparison takes two


def parse_time(text: str, flag: str = "--budget") -> float:
    """Seconds in "90s", "10m", "1.5h". Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{flag} {text!r} is no time; expected something like 90s, 10m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def duration(seconds: float) -> str:
    """About how long that is, in words."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"


def run_within_budget(study: Study, ids: Sequence[int]) -> None:
    """Run the cells most informative first, until all are done or the driver's deadline has passed."""
    store, driver = study.driver.store, study.driver
    seeds: dict[Cell, list[int]] = {}
    for stored in store.cells(ids):
        seeds.setdefault(replace(stored.cell, seed=0), []).append(stored.id)
    survivors = list(seeds)
    aside: list[Cell] = []
    for rung in RUNGS:
        until = {variant: math.ceil(variant.epochs / rung) for variant in survivors}
        for epochs in sorted(set(until.values())):
            driver.run([seeds[v][0] for v in survivors if until[v] == epochs], until=epochs)
        if driver.late():
            return
        ranked = sorted(survivors, key=lambda v: _accuracy(study, seeds[v][0]), reverse=True)
        keep = len(ranked) if rung == RUNGS[-1] else max(FEWEST, math.ceil(len(ranked) / 2))
        survivors, aside = ranked[:keep], ranked[keep:] + aside
    for group in (survivors, aside):
        for turn in range(max(len(of_variant) for of_variant in seeds.values())):
            driver.run([seeds[v][turn] for v in group if turn < len(seeds[v])])
            if driver.late():
                return


def _accuracy(study: Study, cell: int) -> float:
    """Latest validation accuracy; a training that failed or diverged comes last."""
    (stored,) = study.driver.store.cells([cell])
    epochs = study.driver.store.epochs(cell)
    if not epochs or stored.status not in ("paused", "done"):
        return -1.0
    return metric_of(study.facts).of(kept_of(epochs, stored.cell.best_epoch), "val")
