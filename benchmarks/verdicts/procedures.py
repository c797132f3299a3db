"""Ways of judging: each takes many studies at once and returns which norms it calls behind, and its intervals.

Accuracies are (studies, norms, seeds). All but ours are here; they are what they are in textbooks, at a level of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import special, stats

LEVEL = 0.05
_TINY = 1e-12  # of a variance
_DRAWS = 100_000
_FREEDOMS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 60, 200)  # at which a quantile is simulated; between them a line


@dataclass(frozen=True)
class Judgement:
    """What is said of each study: (studies, norms) arrays.

    `behind` are the norms said to be worse than the best. `low` and `high` are the printed intervals of how far the
    norm is from another: from the one that was `chosen` (studies,), or from the best of the others, as `against` says.
    """

    behind: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chosen: np.ndarray
    against: Literal["chosen", "best of the others"] = "chosen"


Judge = Callable[[np.ndarray, np.ndarray], Judgement]  # of test and validation accuracies


@dataclass(frozen=True)
class Procedure:
    """A way of judging studies, of which test images there are `images`; it may look at the first studies only.

    `behind_at` gives for each of some numbers of seeds which norms (studies, norms) are said to be behind.
    """

    judge: Callable[[np.ndarray, np.ndarray, int], Judgement]
    behind_at: Callable[[np.ndarray, np.ndarray, int, Sequence[int]], dict[int, np.ndarray]]


def textbook(judge: Judge) -> Procedure:
    """A way of judging that takes each number of seeds by itself, and the test images as they are."""

    def behind_at(test: np.ndarray, val: np.ndarray, images: int, seeds: Sequence[int]) -> dict[int, np.ndarray]:
        return {n: judge(test[:, :, :n], val[:, :, :n]).behind for n in seeds}

    return Procedure(lambda test, val, images: judge(test, val), behind_at)


def paired_holm(test: np.ndarray, val: np.ndarray) -> Judgement:
    """What stood here before: the winner by validation, paired t tests of all pairs, Holm's correction."""
    studies, norms, seeds = test.shape
    one, other = np.triu_indices(norms, 1)
    difference = test[:, one] - test[:, other]
    mean, se = difference.mean(2), np.sqrt(difference.var(2, ddof=1) / seeds + _TINY)
    p = 2 * special.stdtr(seeds - 1, -np.abs(mean) / se)
    order = np.argsort(p, axis=1)
    steps = np.take_along_axis(p, order, 1) * np.arange(len(one), 0, -1)
    holm = np.empty_like(p)
    np.put_along_axis(holm, order, np.maximum.accumulate(steps, 1), 1)
    chosen = val.mean(2).argmax(1)
    rows = np.arange(studies)
    ahead = np.zeros((studies, norms, norms), bool)
    ahead[:, one, other], ahead[:, other, one] = (holm <= LEVEL) & (mean > 0), (holm <= LEVEL) & (mean < 0)
    leads = test - test[rows, chosen][:, None]
    half = special.stdtrit(seeds - 1, 1 - LEVEL / 2) * np.sqrt(leads.var(2, ddof=1) / seeds + _TINY)
    return Judgement(ahead[rows, chosen], leads.mean(2) - half, leads.mean(2) + half, chosen)


def tukey(test: np.ndarray, val: np.ndarray) -> Judgement:
    """All pairs by the studentized range, one variance for all norms."""
    _, norms, seeds = test.shape
    half = _range_quantile(norms, norms * (seeds - 1)) * np.sqrt(_pool_variance(test) / seeds)[:, None]
    return _judge_against_chosen(test, half, test.mean(2).argmax(1))


def dunnett(test: np.ndarray, val: np.ndarray) -> Judgement:
    """Every norm against the winner by validation, as if that were a control named beforehand."""
    _, norms, seeds = test.shape
    quantile = _many_to_one(norms - 1, norms * (seeds - 1), two_sided=True)
    half = quantile * np.sqrt(2 * _pool_variance(test) / seeds)[:, None]
    return _judge_against_chosen(test, half, val.mean(2).argmax(1))


def mcb(test: np.ndarray, val: np.ndarray) -> Judgement:
    """Multiple comparisons with the best (Hsu 1981), one variance for all norms."""
    _, norms, seeds = test.shape
    variance = np.repeat(_pool_variance(test)[:, None], norms, 1)
    return _mcb(test, variance, _many_to_one(norms - 1, norms * (seeds - 1), two_sided=False))


def mcb_moderated(test: np.ndarray, val: np.ndarray) -> Judgement:
    """Multiple comparisons with the best, each norm's variance shrunk towards the others' (Smyth 2004)."""
    norms = test.shape[1]
    variance, freedom = moderated(test)
    quantiles = [_many_to_one(norms - 1, df, two_sided=False) for df in _FREEDOMS]
    return _mcb(test, variance, np.interp(freedom, _FREEDOMS, quantiles)[:, None])


def hierarchical(test: np.ndarray, val: np.ndarray) -> Judgement:
    """A Bayesian model: normal seeds, variances of a common scale, flat means; 200 draws of the posterior.

    A norm is behind if it is left out of the smallest set that contains the best with 95 % probability. The
    intervals hold each norm's distance from the best of the others.
    """
    studies, norms, seeds = test.shape
    rng = np.random.default_rng(0)
    variance, freedom = moderated(test)
    draws = 200
    scale = np.sqrt(variance * freedom[:, None] / seeds)[None]
    chi = np.sqrt(rng.chisquare(np.broadcast_to(freedom[None, :, None], (draws, studies, norms))))
    means = test.mean(2) + rng.standard_normal((draws, studies, norms)) * scale / chi
    share = (means == means.max(2, keepdims=True)).mean(0)
    order = np.argsort(-share, axis=1)
    before = np.cumsum(np.take_along_axis(share, order, 1), 1) - np.take_along_axis(share, order, 1)
    behind = np.empty((studies, norms), bool)
    np.put_along_axis(behind, order, before >= 1 - LEVEL, 1)
    gaps = means - best_of_others(means)
    low, high = np.quantile(gaps, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return Judgement(behind, low, high, test.mean(2).argmax(1), "best of the others")


def e_values(test: np.ndarray, val: np.ndarray) -> Judgement:
    """Sequential t tests of all pairs: mixture likelihood ratios, which may be looked at after every seed.

    The ratio for the mean of n paired differences, with t their t statistic, against effects drawn from N(0, 1/c):
    sqrt(c / (n + c)) ((1 + t^2/(n-1)) / (1 + c/(n + c) t^2/(n-1)))^(n/2) (Lai 1976; Wang & Ramdas 2024).
    """
    studies, norms, n = test.shape
    c, bound = 0.25, norms * (norms - 1) / 2 / LEVEL
    rows = np.arange(studies)
    chosen = test.mean(2).argmax(1)
    leads = test - test[rows, chosen][:, None]
    mean, se = leads.mean(2), np.sqrt(leads.var(2, ddof=1) / n + _TINY)
    shrink = c / (n + c)
    # the ratio grows with t^2 up to shrink^(1/2 - n/2): below the bound nothing is ever decided
    power = (bound / math.sqrt(shrink)) ** (2 / n)
    reach = math.sqrt((n - 1) * (power - 1) / (1 - power * shrink)) if power * shrink < 1 else math.inf
    with np.errstate(invalid="ignore"):
        half = np.where(se > 0, reach * se, 0.0)
    low, high = np.clip(mean - half, -1, 1), np.clip(mean + half, -1, 1)
    return Judgement(mean + half < 0, low, high, chosen)


TEXTBOOK: dict[str, Judge] = {
    "paired t, Holm (before)": paired_holm,
    "Tukey": tukey,
    "Dunnett": dunnett,
    "MCB, pooled": mcb,
    "MCB, moderated": mcb_moderated,
    "Bayes, hierarchical": hierarchical,
    "e-values, all pairs": e_values,
}


def moderated(test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (studies, norms) shrunk towards each other, and their degrees of freedom (studies,): limma's rule.

    log s^2 of normal samples has a known mean and variance; what it varies more says how unlike the norms are.
    """
    seeds = test.shape[2]
    d = seeds - 1
    s2 = test.var(2, ddof=1) + _TINY
    z = np.log(s2) - special.digamma(d / 2) + math.log(d / 2)
    excess = z.var(1, ddof=1) - special.polygamma(1, d / 2)
    grid = np.exp(np.linspace(math.log(0.2), math.log(1000), 2000))  # of the prior's degrees of freedom
    prior = np.where(excess > 0, np.interp(-excess, -special.polygamma(1, grid / 2), grid), grid[-1])
    common = np.exp(z.mean(1) + special.digamma(prior / 2) - np.log(prior / 2))
    variance = (prior * common)[:, None] + d * s2
    return variance / (prior + d)[:, None], prior + d


def _mcb(test: np.ndarray, variance: np.ndarray, quantile: np.ndarray | float) -> Judgement:
    """Hsu's constrained intervals of each norm's distance from the best of the others, of pairs' own spreads."""
    _, norms, seeds = test.shape
    mean = test.mean(2)
    half = np.sqrt((variance[:, :, None] + variance[:, None]) / seeds)
    half = half * (quantile[:, :, None] if isinstance(quantile, np.ndarray) else quantile)
    difference = mean[:, :, None] - mean[:, None]
    other = ~np.eye(norms, dtype=bool)
    high = np.where(other, difference + half, np.inf).min(2)
    low = np.where(other, difference - half, np.inf).min(2)
    best = mean.argmax(1)
    return Judgement(high < 0, np.minimum(low, 0), np.maximum(high, 0), best, "best of the others")


def _judge_against_chosen(test: np.ndarray, half: np.ndarray, chosen: np.ndarray) -> Judgement:
    leads = test.mean(2) - test.mean(2)[np.arange(len(test)), chosen][:, None]
    return Judgement(leads + half < 0, leads - half, leads + half, chosen)


def best_of_others(means: np.ndarray) -> np.ndarray:
    """Of (..., norms): for each norm the greatest of the others."""
    first, second = np.sort(means, -1)[..., -1:], np.sort(means, -1)[..., -2:-1]
    return np.where(means == first, second, first)


def _pool_variance(test: np.ndarray) -> np.ndarray:
    return test.var(2, ddof=1).mean(1) + _TINY


@cache
def _range_quantile(groups: int, df: int) -> float:
    return float(stats.studentized_range.ppf(1 - LEVEL, groups, df))


@cache
def _many_to_one(others: int, df: int, *, two_sided: bool) -> float:
    """Dunnett's quantile for equally many seeds: the greatest of `others` t statistics that share a control."""
    rng = np.random.default_rng(0)
    own, control = rng.standard_normal((_DRAWS, others)), rng.standard_normal((_DRAWS, 1))
    t = (own - control) / math.sqrt(2) / np.sqrt(rng.chisquare(df, (_DRAWS, 1)) / df)
    return float(np.quantile((np.abs(t) if two_sided else t).max(1), 1 - LEVEL))
