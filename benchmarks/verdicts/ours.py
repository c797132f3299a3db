"""What normlab says of a study, for many studies at once: the rules of `normlab.study`, vectorized.

A test holds this against `normlab.study.statistics.compare_all`, study by study.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.verdicts.procedures import Judgement
from normlab.study import statistics
from normlab.study.spreads import Spreads, fitted
from normlab.study.verdict import behind_others

TOGETHER = 100  # studies, for the memory that they take
INTERVALS_OF = 100  # studies whose intervals are computed, which takes longest
ONE_BY_ONE = 60  # studies looked at one by one, where trainings collapse
_COLLAPSED = 0.25  # of a study's best accuracy; no world has norms so far apart


def behind_at(test: np.ndarray, val: np.ndarray, images: int, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """(studies, norms) which norms are said to be behind with so many seeds, with all looks before."""
    if _any_collapsed(test):
        test, val = test[:ONE_BY_ONE], val[:ONE_BY_ONE]
        return {n: one_by_one(test[:, :, :n], val[:, :, :n], images).behind for n in seeds}
    parts = np.array_split(test, -(-len(test) // TOGETHER))
    found = [_behind_at(part[:, :, : max(seeds)], images, seeds) for part in parts]
    return {n: np.concatenate([of[n] for of in found]) for n in seeds}


def _behind_at(test: np.ndarray, images: int, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    found, up, down = {}, False, False
    for look, (alpha, difference, a, b, spreads) in enumerate(_iterate_looks(test, images), start=2):
        told = spreads.tail(a, b, np.abs(difference)) < alpha
        up, down = up | told & (difference > 0), down | told & (difference < 0)
        if look in seeds:
            found[look] = _find_worse(up & ~down & (difference > 0), down & ~up & (difference < 0), test.shape[1])
    return found


def told_apart(runs: np.ndarray) -> np.ndarray:
    """(studies, pairs) which pairs of norms are told apart at some look, in the order of `itertools.combinations`."""
    found = [
        spreads.tail(a, b, np.abs(difference)) < alpha for alpha, difference, a, b, spreads in _iterate_looks(runs)
    ]
    return np.logical_or.reduce(found)


def judge(test: np.ndarray, val: np.ndarray, images: int) -> Judgement:
    """The whole judgement, with intervals, of the first studies."""
    test, val = test[:INTERVALS_OF], val[:INTERVALS_OF]
    if _any_collapsed(test):
        return one_by_one(test[:ONE_BY_ONE], val[:ONE_BY_ONE], images)
    studies, norms, _ = test.shape
    low, high = np.full((studies, norms, norms), -1.0), np.full((studies, norms, norms), 1.0)
    for alpha, difference, a, b, spreads in _iterate_looks(test, images):
        half = spreads.reach(a, b, alpha)
        low[:, a, b] = np.maximum(low[:, a, b], spreads.differences(a, b, difference - half))
        high[:, a, b] = np.minimum(high[:, a, b], spreads.differences(a, b, difference + half))
    a, b = np.triu_indices(norms, 1)
    low[:, b, a], high[:, b, a] = -high[:, a, b], -low[:, a, b]
    low, high = np.minimum(low, high), np.maximum(low, high)
    chosen, rows = val.mean(2).argmax(1), np.arange(studies)
    return Judgement(
        behind_at(test, val, images, [test.shape[2]])[test.shape[2]],
        low[rows, :, chosen],
        high[rows, :, chosen],
        chosen,
    )


def _iterate_looks(
    test: np.ndarray, images: int | None = None
) -> Iterator[tuple[float, np.ndarray, np.ndarray, np.ndarray, Spreads]]:
    """Of each look at 2, 3 ... seeds: alpha of a pair, the logits' differences, the pairs, and the spreads."""
    norms, seeds = test.shape[1:]
    a, b = np.triu_indices(norms, 1)
    for look in range(2, seeds + 1):
        resolution = 1 / images if images else statistics.RESOLUTION
        spreads = fitted([test[:, norm, :look] for norm in range(norms)], resolution, images)
        alpha = statistics.of_a_pair(statistics.spent(look), norms)
        yield alpha, spreads.logits[:, a] - spreads.logits[:, b], a, b, spreads


def _find_worse(up: np.ndarray, down: np.ndarray, norms: int) -> np.ndarray:
    """(studies, norms) from what pairs say: `up` where the first is better, `down` where the second is."""
    found = np.zeros((len(up), norms), bool)
    for at, (a, b) in enumerate(zip(*np.triu_indices(norms, 1), strict=True)):
        found[:, b] |= up[:, at]
        found[:, a] |= down[:, at]
    return found


def _any_collapsed(test: np.ndarray) -> bool:
    return bool((test < _COLLAPSED * test.max((1, 2), keepdims=True)).any())


def one_by_one(test: np.ndarray, val: np.ndarray, images: int) -> Judgement:
    """The whole judgement, with trainings at chance left out of the means, as failures that are counted apart."""
    shape = test.shape[:2]
    found, low, high = np.zeros(shape, bool), np.full(shape, -1.0), np.full(shape, 1.0)
    chosen = np.zeros(shape[0], int)
    for at, (accuracies, seen) in enumerate(zip(test, val, strict=True)):
        learned = accuracies > _COLLAPSED * accuracies.max()
        values = {str(norm): list(accuracies[norm, learned[norm]]) for norm in range(shape[1])}
        failures = {norm: (accuracies.shape[1] - len(of), accuracies.shape[1]) for norm, of in values.items()}
        chosen[at] = max(
            range(shape[1]), key=lambda norm: float(seen[norm, learned[norm]].sum()) / max(1, learned[norm].sum())
        )
        pairs = statistics.compare_all(
            {norm: of for norm, of in values.items() if of}, resolution=1 / images, images=images
        )
        found[at, [int(norm) for norm in behind_others(pairs, failures)]] = True
        for pair in pairs:
            if str(chosen[at]) in (pair.a, pair.b):
                lead = pair.seen_from(str(chosen[at])).difference.negated
                other = int(pair.b if pair.a == str(chosen[at]) else pair.a)
                if lead.low is not None and lead.high is not None:
                    low[at, other], high[at, other] = lead.low, lead.high
    return Judgement(found, low, high, chosen)
