"""Which norms fail to learn more often than others, with a bound on how often that is said wrongly.

A norm that fails often where most others never do is behind them. Had all norms the same rate of failure, that would
be as rare as the least favourable rate makes it; it is said if that is rare enough, and the rarer the more seeds there
are, for a study may be looked at after every seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

OFTEN = 1 / 3  # a norm that fails so much more often than the best one is to be avoided
# studies of norms that all fail alike in which one is said to fail more often: at most this share at the first look, of
# three seeds, and fewer at later ones (all looks from 3 to 12 together: 2.8 to 4.3 % at rates of 10 to 30 %)
_WRONG, _FIRST = 0.035, 3
_RATES = np.linspace(0.01, 0.99, 99)

Failures = Mapping[str, tuple[int, int]]  # of each norm: how many trainings did not learn, and of how many


def rate(failures: Failures, norm: str) -> float:
    """The share of a norm's trainings that did not learn."""
    return failures[norm][0] / failures[norm][1]


def excess(failures: Failures, norm: str) -> float:
    """How much more often a norm fails than the soundest one."""
    return rate(failures, norm) - min(rate(failures, other) for other in failures)


def failing(failures: Failures) -> list[str]:
    """The norms that surely fail more often than others."""
    return [
        norm
        for norm in failures
        if excess(failures, norm) >= OFTEN
        and len(failures) * _failure_probability(failures, norm) <= _allowed_error(failures[norm][1])
    ]


def _allowed_error(seeds: int) -> float:
    """How often the look at that many seeds may be wrong."""
    return _WRONG * min(1.0, (_FIRST / seeds) ** 3)


def _failure_probability(failures: Failures, norm: str) -> float:
    """How likely it is at most, if all fail alike, that this norm fails as often and as many others never do."""
    failed, ended = failures[norm]
    others = [counts for other, counts in failures.items() if other != norm]
    never = sum(not count for count, _ in others)
    as_often = _probability_of_at_least(failed, [_RATES] * ended)
    return float((as_often * _probability_of_at_least(never, [(1 - _RATES) ** count for _, count in others])).max())


def _probability_of_at_least(count: int, chances: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The probability that at least that many independent events happen, for each rate."""
    number = np.zeros((len(chances) + 1, len(_RATES)))
    number[0] = 1
    for chance in chances:
        number[1:] = number[1:] * (1 - chance) + number[:-1] * chance
        number[0] *= 1 - chance
    return number[count:].sum(axis=0)
