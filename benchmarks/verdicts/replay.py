"""Small studies drawn from large real ones: what would have been said, had only these seeds been run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.verdicts.cells import Table
from benchmarks.verdicts.procedures import Procedure
from normlab.study.running.until_sure import FEWEST, look
from normlab.study.verdict import CHANCE, Verdict, judge

LIKE = 0.01  # norms whose means over all seeds are this near to the best's are called as good
FAR = 0.05  # norms that are further behind are to be out


def draws(table: Table, count: int, seeds: int) -> np.ndarray:
    """(count, seeds) different seeds of the table."""
    rng = np.random.default_rng(0)
    order = np.array([rng.permutation(table.seeds) for _ in range(count)])
    return order[:, :seeds]


def of_draws(table: Table, chosen: np.ndarray, norms: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(draws, norms, seeds) test and validation accuracies after the last epoch."""
    test = np.stack([table.test[norm][chosen] for norm in norms], 1)
    return test, np.stack([table.val[norm][chosen, -1] for norm in norms], 1)


def replayed(procedure: Procedure, table: Table, seeds: int, count: int) -> dict[str, float]:
    """Shares of draws: a norm is named behind, the two last ones are, one is that is as good as the best."""
    means = np.array([table.test[norm].mean() for norm in table.norms])
    count = min(count, 300)
    good = means >= means.max() - LIKE
    far = far_behind(table)
    drawn = of_draws(table, draws(table, count, seeds), table.norms)
    behind = procedure.behind_at(*drawn, table.about["images"]["test"], (seeds,))[seeds]
    return {
        "any": float(behind.any(1).mean()),
        "far": float(behind[:, far].all(1).mean()),
        "wrong": float((behind & good).any(1).mean()),
    }


def far_behind(table: Table) -> np.ndarray:
    """(norms,) the two that are last over all seeds."""
    means = np.array([table.test[norm].mean() for norm in table.norms])
    return means <= np.sort(means)[1]


@dataclass(frozen=True)
class Spent:
    """What `--until-sure` took: trainings in all, and those until the right best set stood for good.

    The right one has every norm that is as good as the best, and none that is `FAR` behind; `until_right` is infinite
    where it ended with another.
    """

    trainings: int
    until_right: float
    kept: bool


def until_sure(table: Table, order: np.ndarray, most: int) -> Spent:
    """What `--until-sure` takes where seeds come in this order."""
    trained, until_right = dict.fromkeys(table.norms, FEWEST), math.inf
    means = {norm: float(table.test[norm].mean()) for norm in table.norms}
    good = {norm for norm in table.norms if means[norm] >= max(means.values()) - LIKE}
    far = {norm for norm in table.norms if means[norm] < max(means.values()) - FAR}
    for turn in range(FEWEST, most + 1):
        cells = [_cell(table, norm, order[at], at) for norm, seeds in trained.items() for at in range(seeds)]
        verdict = _judge(table, cells)
        right = good <= set(verdict.best_set) and not far & set(verdict.best_set)
        until_right = min(until_right, sum(trained.values())) if right else math.inf
        progress = look(verdict, most)
        if progress.settled or turn == most:
            break
        trained |= dict.fromkeys(progress.open or table.norms, turn + 1)
    return Spent(sum(trained.values()), until_right, good <= set(verdict.best_set))


def steadiness(table: Table, orders: np.ndarray) -> dict[str, float]:
    """Shares of draws that recommend the same norm without one of the two last ones, and say the same reordered."""
    last = np.array(table.norms)[far_behind(table)]
    same: dict[str, list[bool]] = {"dropping": [], "reordering": []}
    for order in orders:
        cells = [_cell(table, norm, seed, at) for norm in table.norms for at, seed in enumerate(order)]
        verdict = _judge(table, cells)
        without = [_judge(table, [cell for cell in cells if cell["norm"] != norm]) for norm in last]
        same["dropping"] += [other.best == verdict.best for other in without]
        same["reordering"].append(_judge(table, cells[::-1]) == verdict)
    return {name: float(np.mean(found)) for name, found in same.items()}


def _judge(table: Table, cells: Sequence[Mapping[str, Any]]) -> Verdict:
    return judge(cells, test_images=table.about["images"]["test"], floors={CHANCE: 1 / table.about["classes"]})


def _cell(table: Table, norm: str, seed: int, at: int) -> dict[str, Any]:
    """As in results.json, with what a verdict needs: the training of a seed as the one that came `at` that place."""
    return {
        "norm": norm,
        "seed": at,
        "status": "done",
        "test": {"accuracy": float(table.test[norm][seed])},
        "epochs": [{"val_accuracy": float(value)} for value in table.val[norm][seed]],
    }
