"""Small studies drawn from large real ones: what would have been said, had only these seeds been run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.verdicts.cells import Table
from benchmarks.verdicts.procedures import Procedure
from normlab.study.running.until_sure import FEWEST, look
from normlab.study.verdict import CHANCE, judge

LIKE = 0.01  # norms whose means over all seeds are this near to the best's are called as good


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


def until_sure(table: Table, order: np.ndarray, most: int) -> tuple[int, bool]:
    """Trainings that `--until-sure` takes where seeds come in this order, and whether all that are as good stay in."""
    trained, images = dict.fromkeys(table.norms, FEWEST), table.about["images"]["test"]
    means = {norm: float(table.test[norm].mean()) for norm in table.norms}
    for turn in range(FEWEST, most + 1):
        cells = [_cell(table, norm, seed) for norm, seeds in trained.items() for seed in order[:seeds]]
        verdict = judge(cells, test_images=images, floors={CHANCE: 1 / table.about["classes"]})
        progress = look(verdict, most)
        if progress.settled or turn == most:
            break
        trained |= dict.fromkeys(progress.open or table.norms, turn + 1)
    good = [norm for norm in table.norms if means[norm] >= max(means.values()) - LIKE]
    return sum(trained.values()), set(good) <= set(verdict.best_set)


def _cell(table: Table, norm: str, seed: int) -> dict[str, Any]:
    """As in results.json, with what a verdict needs."""
    return {
        "norm": norm,
        "seed": int(seed),
        "status": "done",
        "test": {"accuracy": float(table.test[norm][seed])},
        "epochs": [{"val_accuracy": float(value)} for value in table.val[norm][seed]],
    }
