"""Simulated studies whose truth is known: seven norms, seeds that vary, a test set that is a sample.

The accuracy of norm j at seed s is `mean[j]` plus noise of `spread[j]`; what a study sees of it besides is the luck
of its test images, most of which all seeds of a norm share. A wrong statement is one about `mean`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NORMS = 7
SEEDS = 12  # drawn for each study; procedures see the first n of them
SPREAD = 0.015  # between seeds, where nothing else is said: digits have .009 to .2, CIFAR-10 at 16 px .01 to .02
GAP = 0.05
# of the variance p (1 - p) / images of a test set: what is the luck of one norm (all its seeds), and of one training;
# the rest is luck that all networks share (measured on the digits: .2 points of a difference of like norms)
OF_NORM, OF_TRAINING = 0.05, 0.3


@dataclass(frozen=True)
class World:
    """Where norms truly stand, and how their trainings vary.

    `means` and `spreads` are one per norm, `collapse` the share of trainings that end at chance, `correlation` how
    much of the seeds' variance norms share, `images` the size of the test set and of the validation set.
    """

    name: str
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    collapse: float = 0.0
    correlation: float = 0.0
    images: int = 10_000
    chance: float = 0.1

    @property
    def mean(self) -> np.ndarray:
        """(k,) the means of the trainings as they are, those that collapse included."""
        return (1 - self.collapse) * np.array(self.means) + self.collapse * self.chance

    def draw(self, studies: int, rng: np.random.Generator, seeds: int = SEEDS) -> tuple[np.ndarray, np.ndarray]:
        """Test and validation accuracies, each (studies, norms, seeds)."""
        shape = studies, len(self.means), seeds
        own, shared = rng.standard_normal(shape), rng.standard_normal((studies, 1, seeds))
        mixed = np.sqrt(1 - self.correlation) * own + np.sqrt(self.correlation) * shared
        accuracy = np.array(self.means)[:, None] + np.array(self.spreads)[:, None] * mixed
        accuracy = np.where(accuracy > 1, 2 - accuracy, accuracy)  # nothing is more than right
        accuracy = np.where(rng.random(shape) < self.collapse, self.chance, accuracy)
        return self._measure(accuracy, rng), self._measure(accuracy, rng)

    def _measure(self, accuracy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        studies, norms, seeds = accuracy.shape
        luck = np.sqrt(np.clip(accuracy * (1 - accuracy), 0, None) / self.images)
        parts = (
            (1 - OF_NORM - OF_TRAINING, (studies, 1, 1)),
            (OF_NORM, (studies, norms, 1)),
            (OF_TRAINING, (studies, norms, seeds)),
        )
        seen = accuracy + luck * sum(np.sqrt(share) * rng.standard_normal(shape) for share, shape in parts)
        return np.clip(np.round(seen * self.images) / self.images, 0, 1)


def _world(
    name: str,
    behind: float | tuple[float, ...] = 0.0,
    spread: Callable[[int], float] | float = SPREAD,
    *,
    best: float = 0.8,
    **rest: float,
) -> World:
    gaps = behind if isinstance(behind, tuple) else (behind,) * NORMS
    spreads = tuple(spread(i) if callable(spread) else spread for i in range(NORMS))
    return World(name, tuple(best - gap for gap in gaps), spreads, **rest)  # type: ignore[arg-type]


def _widen_spread(times: float, *which: int) -> Callable[[int], float]:
    return lambda i: SPREAD * (times if i in which else 1)


_ONE_BEST = (0.0,) + (GAP,) * (NORMS - 1)
_THREE = (0.0,) * 3 + (GAP,) * (NORMS - 3)
WORLDS = (
    _world("equal"),
    _world("one best, by 5 points", _ONE_BEST),
    _world("three tied, 5 points ahead", _THREE),
    _world("equal, one 3 x as wide", 0.0, _widen_spread(3, 0)),
    _world("equal, one 10 x as wide", 0.0, _widen_spread(10, 0), best=0.5),
    _world("equal, one a third as wide", 0.0, _widen_spread(3, *range(1, NORMS))),
    _world("equal, one a tenth as wide", 0.0, _widen_spread(10, *range(1, NORMS)), best=0.5),
    _world("equal, half 10 x as wide", 0.0, _widen_spread(10, 0, 1, 2), best=0.5),
    _world("three tied, one of them 10 x", _THREE, _widen_spread(10, 0), best=0.5),
    _world("equal, 10 % collapse", collapse=0.1),
    _world("equal, 30 % collapse", collapse=0.3),
    _world("equal, at 99.5 %", best=0.995, spread=0.0015),
    _world("equal, seeds correlated .5", correlation=0.5),
    _world("equal, 269 test images", images=269),
    _world("equal, 1,000 test images", images=1000),
    _world("one best, 269 test images", _ONE_BEST, images=269),
)
POWER_WORLD = WORLDS[1]
