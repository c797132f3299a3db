"""What is counted of a procedure in a world: wrong statements, coverage, power, looks, changes of mind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.verdicts.procedures import Judgement, Procedure, best_of_others
from benchmarks.verdicts.worlds import GAP, SEEDS, World

LOOKS = range(3, SEEDS + 1)
AT = (3, 5)  # seeds at which error and coverage are reported


def wrong(behind: np.ndarray, world: World) -> np.ndarray:
    """(studies,) whether a norm is said to be behind that is as good as the best."""
    return (behind & (world.mean == world.mean.max())).any(1)


def covered(said: Judgement, world: World) -> np.ndarray:
    """(studies,) whether all the printed intervals hold the truth together."""
    if said.against == "chosen":
        truth = world.mean - world.mean[said.chosen][:, None]
        others = np.arange(len(world.mean)) != said.chosen[:, None]
    else:
        truth = np.broadcast_to(world.mean - best_of_others(world.mean), said.low.shape)
        others = np.ones(said.low.shape, bool)
    return ((said.low <= truth + 1e-9) & (truth <= said.high + 1e-9) | ~others).all(1)


def errors(procedure: Procedure, world: World, test: np.ndarray, val: np.ndarray) -> dict[str, float]:
    """Shares of studies: a wrong statement with 3 and with 5 seeds, at any look, and intervals that all hold."""
    said = procedure.behind_at(test, val, world.images, LOOKS)
    false = {n: wrong(behind, world) for n, behind in said.items()}
    holds = {n: covered(procedure.judge(test[:, :, :n], val[:, :, :n], world.images), world) for n in AT}
    return {
        **{f"wrong at {n}": float(false[n].mean()) for n in AT},
        "wrong at any look": float(np.any(list(false.values()), 0).mean()),
        **{f"cover at {n}": float(holds[n].mean()) for n in AT},
    }


def power(procedure: Procedure, world: World, test: np.ndarray, val: np.ndarray, seeds: Sequence[int]) -> list[float]:
    """The probability, for each number of seeds, that a norm which is behind is said to be."""
    inferior = world.mean < world.mean.max() - GAP / 2
    said = procedure.behind_at(test, val, world.images, seeds)
    return [float(said[n][:, inferior].mean()) for n in seeds]


def changes(procedure: Procedure, world: World, test: np.ndarray, val: np.ndarray, seeds: int = 3) -> dict[str, float]:
    """Shares of studies whose statement changes for no reason.

    "dropping": a norm that is far behind all the others is left out, and another norm gets behind or ceases to be.
    "one more": with one more seed a norm that was behind no longer is.
    """
    far = test.mean(2).argmin(1)
    keep = np.arange(test.shape[1]) != far[:, None]
    rest = [x[keep].reshape(len(x), -1, x.shape[2]) for x in (test, val)]
    said = procedure.behind_at(test, val, world.images, (seeds, seeds + 1))
    all_of_them, more = said[seeds], said[seeds + 1]
    without = procedure.behind_at(*rest, world.images, (seeds,))[seeds]
    return {
        "dropping": float((all_of_them[keep[: len(more)]].reshape(without.shape) != without).any(1).mean()),
        "one more": float((all_of_them & ~more).any(1).mean()),
    }
