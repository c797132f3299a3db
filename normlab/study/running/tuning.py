"""Settings chosen for each norm on the validation split, before the seeds run: the same number of trials for each.

Comparing norms at one learning rate favours whichever it happens to suit. A trial is a cell like any other, with a
seed that the study does not use, so that a tuning that was interrupted goes on and the seeds are fresh evidence.

One seed may favour the wrong value. With several, the better half of the values tried goes on to another seed, the
better half of those to a third (successive halving over seeds; Jamieson & Talwalkar 2016, arXiv:1502.07943), and the
best mean over all seeds is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from normlab.errors import require
from normlab.study.axes import TUNABLE, Cell
from normlab.study.ending import kept_of
from normlab.study.metric import metric_of
from normlab.study.running.driver import Study
from normlab.study.spec import StudySpec

TRIALS = 12  # if there are more combinations than that
SEEDS = 3  # of the values that come out best, where several seeds decide


def tuned(
    study: Study,
    cells: Sequence[Cell],
    spec: StudySpec,
    *,
    seeds: int = 1,
) -> list[Cell]:
    """The study's cells with each tuned setting at the value that suited its norm best over that many seeds.

    What was tried and found goes to `study.facts["tuning"]`. Raises UsageError if Optuna is not installed.
    """
    grids = {axis: _grid(axis, spec) for axis in spec.tune}
    variants = list(dict.fromkeys(_without_tuned(cell, spec.tune) for cell in cells))
    seed = max(spec.seeds) + 1
    searches = {variant: _Search(grids, spec.trials, replace(variant, seed=seed)) for variant in variants}
    tried: list[Cell] = []

    def run(asked: list[Cell]) -> dict[Cell, float]:
        nonlocal tried
        tried = list(dict.fromkeys([*tried, *asked]))
        ids = study.enter(tried)
        study.driver.run(ids)
        return dict(zip(tried, (_objective(study, cell) for cell in ids), strict=True))

    # something is tried however late it is
    while any(search.open for search in searches.values()) and not (tried and study.driver.late()):
        values = run([search.ask() for search in searches.values() if search.open])
        for search in searches.values():
            search.tell(values)
    for further in range(1, seeds):
        if study.driver.late():
            break
        values = run([cell for search in searches.values() for cell in search.better_half(further)])
        for search in searches.values():
            search.add(values)
    study.facts["tuning"] = [search.summary() for search in searches.values()]
    best = {variant: search.best() for variant, search in searches.items()}
    return list(dict.fromkeys(_with_settings(cell, best[_without_tuned(cell, spec.tune)]) for cell in cells))


def foreseen(cells: Sequence[Cell], spec: StudySpec, *, seeds: int = 1) -> tuple[list[Cell], int]:
    """The trials of `tuned` that are known beforehand, and how many there are at most.

    Known are those of grids that are tried whole.
    """
    grids = {axis: _grid(axis, spec) for axis in spec.tune}
    variants = dict.fromkeys(_without_tuned(cell, spec.tune) for cell in cells)
    everything = list(itertools.product(*grids.values()))
    trials = _trials(grids, spec.trials)
    count = sum(math.ceil(trials / 2**further) for further in range(seeds))
    known = everything if trials == len(everything) else []
    seed = max(spec.seeds) + 1
    first = [
        _with_settings(replace(v, seed=seed), dict(zip(grids, values, strict=True)))
        for v in variants
        for values in known
    ]
    return first, count * len(variants)


def _trials(grids: dict[str, tuple[float, ...]], wanted: int | None) -> int:
    """How many values are tried: no more than there are."""
    return min(math.prod(map(len, grids.values())), wanted or max(TRIALS, *map(len, grids.values())))


class _Search:
    """Optuna's search over the grids for one variant, one trial at a time."""

    def __init__(self, grids: dict[str, tuple[float, ...]], trials: int | None, variant: Cell) -> None:
        self._optuna = _import_optuna()
        self._grids, self._variant = grids, variant
        everything = list(itertools.product(*(range(len(grid)) for grid in grids.values())))
        self._trials = _trials(grids, trials)
        sampler = self._optuna.samplers.TPESampler(seed=0)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        if self._trials == len(everything):
            for indices in everything:
                self._study.enqueue_trial(dict(zip(grids, indices, strict=True)))
        self._pending: tuple[Any, Cell] | None = None
        self._values: dict[Cell, list[float]] = {}  # of a trial's cell: one per seed
        self._count = 0

    @property
    def open(self) -> bool:
        return self._count < self._trials

    def ask(self) -> Cell:
        """The next trial's cell."""
        trial = self._study.ask()
        choice = {axis: grid[trial.suggest_int(axis, 0, len(grid) - 1)] for axis, grid in self._grids.items()}
        self._pending = trial, _with_settings(self._variant, choice)
        self._count += 1
        return self._pending[1]

    def tell(self, values: dict[Cell, float]) -> None:
        """What came of the trials."""
        if self._pending is not None:
            trial, cell = self._pending
            self._values[cell] = [values[cell]]
            self._study.tell(trial, values[cell])
            self._pending = None

    def better_half(self, further: int) -> list[Cell]:
        """The trials that all seeds before this further one put first, at that seed: half of those that got so far."""
        so_far = [cell for cell, values in self._values.items() if len(values) == further]
        ranked = sorted(so_far, key=self._mean, reverse=True)
        return [replace(cell, seed=cell.seed + further) for cell in ranked[: math.ceil(len(ranked) / 2)]]

    def add(self, values: dict[Cell, float]) -> None:
        """What came of further seeds."""
        for cell, so_far in self._values.items():
            if (further := replace(cell, seed=cell.seed + len(so_far))) in values:
                so_far.append(values[further])

    def _mean(self, cell: Cell) -> float:
        return sum(self._values[cell]) / len(self._values[cell])

    def best(self) -> dict[str, float]:
        """The best value of each tuned setting, of those that were tried at most seeds."""
        cell = max(self._values, key=lambda c: (len(self._values[c]), self._mean(c)))
        return {axis: getattr(cell, axis) for axis in self._grids}

    def summary(self) -> dict[str, Any]:
        """What was tried, what was best, and which of it lies at the edge of its grid."""
        best = self.best()
        return {
            "norm": self._variant.norm,
            "model": self._variant.model,
            "batch_size": self._variant.batch_size,
            "optimizer": self._variant.optimizer,
            "best": best,
            "at_edge": [axis for axis, value in best.items() if value in _edges(axis, self._grids[axis])],
            "trials": [
                {
                    **{axis: getattr(cell, axis) for axis in self._grids},
                    "val_accuracy": self._mean(cell),
                    **({"seeds": len(values)} if len(values) > 1 else {}),
                }
                for cell, values in self._values.items()
            ],
        }


def _grid(axis: str, spec: StudySpec) -> tuple[float, ...]:
    """Where to look: the values that the spec names, if several, else the axis's own."""
    given = getattr(spec, TUNABLE[axis].setting)
    return tuple(sorted(set(given))) if len(given) > 1 else TUNABLE[axis].grid


def _edges(axis: str, grid: tuple[float, ...]) -> tuple[float, ...]:
    """The ends of a grid beyond which there is more; nothing lies below no decay and no dropout."""
    return (grid[0], grid[-1]) if grid[0] > 0 else (grid[-1],)


def _without_tuned(cell: Cell, axes: Sequence[str]) -> Cell:
    """The cell regardless of its seed and of what is tuned."""
    return _with_settings(replace(cell, seed=0), dict.fromkeys(axes, 0.0))


def _with_settings(cell: Cell, settings: dict[str, Any]) -> Cell:
    return replace(cell, **settings)


def _objective(study: Study, cell: int) -> float:
    """Validation accuracy after the last epoch; 0 for a training that failed, which no search should return to."""
    (stored,) = study.driver.store.cells([cell])
    if stored.status != "done":
        return 0.0
    return metric_of(study.facts).of(kept_of(study.driver.store.epochs(cell), stored.cell.best_epoch), "val")


def _import_optuna() -> Any:
    require("--tune", "study", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
