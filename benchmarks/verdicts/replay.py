"""Small studies drawn from large real ones: what would have been said, had only these seeds been run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.verdicts.cells import Table
from benchmarks.verdicts.procedures import Procedure
from normlab.study.running.until_sure import FEWEST
from normlab.study.statistics import compare_all
from normlab.study.verdict import MATTERS

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
    norms, trained = set(table.norms), dict.fromkeys(table.norms, FEWEST)
    means = {norm: float(table.test[norm].mean()) for norm in norms}
    for turn in range(FEWEST, most + 1):
        comparisons = compare_all(
            {norm: table.test[norm][order[:seeds]].tolist() for norm, seeds in trained.items()},
            resolution=1 / table.about["images"]["test"],
            matters=MATTERS,
        )
        behind = {c.b if c.difference.mean > 0 else c.a for c in comparisons if c.detectable}
        best = norms - behind
        if all(c.same for c in comparisons if {c.a, c.b} <= best) or turn == most:
            break
        trained |= dict.fromkeys(best, turn + 1)
    return sum(trained.values()), all(norm in best for norm in norms if means[norm] >= max(means.values()) - LIKE)
