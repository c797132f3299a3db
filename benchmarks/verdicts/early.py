"""`python -m benchmarks.verdicts.early`: what setting norms aside before their last epoch saves, and what it costs.

After half of the epochs of two or three seeds, norms go whose validation accuracy is behind the leader's by a t test at
2 % with a spread that all share, on the logit scale. No rule of normlab does that; the table says why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import special

from benchmarks.verdicts.cells import Table, tables
from benchmarks.verdicts.markdown import markdown
from benchmarks.verdicts.replay import FAR, LIKE, draws
from benchmarks.verdicts.worlds import WORLDS

ERROR, STUDIES, DRAWS = 0.02, 2000, 200
AT = (2, 3)  # seeds


def set_aside(accuracies: np.ndarray, images: int) -> np.ndarray:
    """(studies, norms) which norms go, from validation accuracies (studies, norms, seeds)."""
    x = special.logit(np.clip(accuracies, 0.5 / images, 1 - 0.5 / images))
    norms, seeds = x.shape[1:]
    spread = np.sqrt(x.var(2, ddof=1).mean(1) * 2 / seeds)
    bound = special.stdtrit(norms * (seeds - 1), 1 - ERROR) * spread
    means = x.mean(2)
    return np.asarray(means.max(1, keepdims=True) - means > bound[:, None])


def replay(table: Table, seeds: int) -> Mapping[str, str]:
    """A row: how many of the norms that are far behind go, and how often one goes that is as good as the best."""
    half = table.epochs // 2
    chosen = draws(table, DRAWS, seeds)
    out = set_aside(
        np.stack([table.val[norm][chosen, half - 1] for norm in table.norms], 1), table.about["images"]["val"]
    )
    means = np.array([table.test[norm].mean() for norm in table.norms])
    good, far = means >= means.max() - LIKE, means < means.max() - FAR
    return {
        "cells": table.name,
        "seeds": str(seeds),
        "of the epochs of 5 seeds": f"{100 * seeds * half / table.epochs / 5:.0f} %",
        "of the far ones go": f"{100 * out[:, far].mean():.0f} %",
        "exactly these go": f"{100 * (out[:, far].all(1) & ~out[:, good].any(1)).mean():.0f} %",
        "one as good as the best goes": f"{100 * out[:, good].any(1).mean():.1f} %",
    }


def simulate(seeds: int) -> list[dict[str, str]]:
    """A row for each world whose norms are equal: how often one goes."""
    rng = np.random.default_rng(0)
    rows = []
    for world in WORLDS:
        if len(set(world.means)) == 1 and not world.collapse:
            _, val = world.draw(STUDIES, rng, seeds)
            share = set_aside(val, world.images).any(1).mean()
            rows.append({"world": world.name, "seeds": str(seeds), "one goes": f"{100 * share:.1f} %"})
    return rows


if __name__ == "__main__":
    print(markdown([dict(replay(table, seeds)) for table in tables() for seeds in AT]))
    print()
    print(markdown([row for seeds in AT for row in simulate(seeds)]))
