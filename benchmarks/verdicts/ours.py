"""What normlab says of a study, for many studies at once: the rules of `normlab.study`, vectorized.

A test holds this against `normlab.study.statistics.compare_all`, study by study.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.verdicts.procedures import Judgement
from normlab.study import statistics

INTERVALS_OF = 200  # studies whose intervals are computed, which takes longest
ONE_BY_ONE = 60  # studies looked at one by one, where trainings collapse
_COLLAPSED = 0.3  # of a study's best accuracy; no world has norms so far apart


def behind(test: np.ndarray, val: np.ndarray) -> np.ndarray:
    """(studies, norms) which norms are said to be behind, at the last look and with all that came before."""
    if _any_collapsed(test):
        return _one_by_one(test, val).behind
    up, down, difference = False, False, np.zeros(())
    for alpha, difference, a, b, spreads in _looks(test):
        told = spreads.tail(a, b, np.abs(difference)) < alpha
        up, down = up | told & (difference > 0), down | told & (difference < 0)
    return _worse(up & ~down & (difference > 0), down & ~up & (difference < 0), test.shape[1])


def told_apart(runs: np.ndarray) -> np.ndarray:
    """(studies, pairs) which pairs of norms are told apart at some look, in the order of `itertools.combinations`."""
    found = [spreads.tail(a, b, np.abs(difference)) < alpha for alpha, difference, a, b, spreads in _looks(runs)]
    return np.logical_or.reduce(found)


def judge(test: np.ndarray, val: np.ndarray) -> Judgement:
    """The whole judgement, with intervals, of the first studies."""
    test, val = test[:INTERVALS_OF], val[:INTERVALS_OF]
    if _any_collapsed(test):
        return _one_by_one(test, val)
    studies, norms, _ = test.shape
    low, high = np.full((studies, norms, norms), -1.0), np.full((studies, norms, norms), 1.0)
    for alpha, difference, a, b, spreads in _looks(test):
        half = spreads.reach(a, b, alpha)
        low[:, a, b], high[:, a, b] = (
            np.maximum(low[:, a, b], difference - half),
            np.minimum(high[:, a, b], difference + half),
        )
    a, b = np.triu_indices(norms, 1)
    low[:, b, a], high[:, b, a] = -high[:, a, b], -low[:, a, b]
    low, high = np.minimum(low, high), np.maximum(low, high)
    chosen, rows = val.mean(2).argmax(1), np.arange(studies)
    return Judgement(behind(test, val), low[rows, :, chosen], high[rows, :, chosen], chosen)


def _looks(test: np.ndarray) -> Iterator[tuple[float, np.ndarray, np.ndarray, np.ndarray, statistics._Spreads]]:
    """Of each look at 2, 3 ... seeds: alpha of a pair, the differences of all pairs, the pairs, and the spreads."""
    norms, seeds = test.shape[1:]
    a, b = np.triu_indices(norms, 1)
    for look in range(2, seeds + 1):
        arms = [test[:, norm, :look] for norm in range(norms)]
        means, spreads = statistics._fit(arms, statistics.RESOLUTION)
        yield 1 - (1 - statistics.spent(look)) ** (1 / a.size), means[:, a] - means[:, b], a, b, spreads


def _worse(up: np.ndarray, down: np.ndarray, norms: int) -> np.ndarray:
    """(studies, norms) from what pairs say: `up` where the first is better, `down` where the second is."""
    found = np.zeros((len(up), norms), bool)
    for at, (a, b) in enumerate(zip(*np.triu_indices(norms, 1), strict=True)):
        found[:, b] |= up[:, at]
        found[:, a] |= down[:, at]
    return found


def _any_collapsed(test: np.ndarray) -> bool:
    return bool((test < _COLLAPSED * test.max((1, 2), keepdims=True)).any())


def _one_by_one(test: np.ndarray, val: np.ndarray) -> Judgement:
    """The first studies, with trainings at chance left out of the means, as failures that are counted apart."""
    test, val = test[:ONE_BY_ONE], val[:ONE_BY_ONE]
    shape = test.shape[:2]
    found, low, high = np.zeros(shape, bool), np.full(shape, -1.0), np.full(shape, 1.0)
    chosen = np.zeros(shape[0], int)
    for at, (accuracies, seen) in enumerate(zip(test, val, strict=True)):
        learned = accuracies >= _COLLAPSED * accuracies.max()
        values = {str(norm): list(accuracies[norm, learned[norm]]) for norm in range(shape[1])}
        chosen[at] = max(
            range(shape[1]), key=lambda norm: float(seen[norm, learned[norm]].sum()) / max(1, learned[norm].sum())
        )
        for pair in statistics.compare_all({norm: of for norm, of in values.items() if of}):
            if pair.detectable:
                found[at, int(pair.b if pair.difference.mean > 0 else pair.a)] = True
            if str(chosen[at]) in (pair.a, pair.b):
                lead = pair.seen_from(str(chosen[at])).difference.negated
                other = int(pair.b if pair.a == str(chosen[at]) else pair.a)
                if lead.low is not None and lead.high is not None:
                    low[at, other], high[at, other] = lead.low, lead.high
    return Judgement(found, low, high, chosen)
