"""What the seeds of a study are evidence for: paired differences, intervals, and a verdict that can say "cannot tell".

Cells of the same seed start from the same convolutions and see the same images in the same order, so that the
difference of two norms at one seed is free of what the seed does to both. All pairs of norms are compared with
a paired t test and Holm's correction: whichever norm turns out best was chosen by looking, and only a correction
over all pairs keeps the chance of any false claim at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000  # beyond this a difference is not worth settling


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds with its 95 % interval; `low` and `high` are None with one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Comparison:
    """How two variants differ over the seeds they share: `difference` is a minus b.

    `effect` is the mean difference in standard deviations of the differences (Cohen's d_z); `p` the two-sided
    p-value of the paired t test and `p_corrected` Holm's over all pairs; `seeds_needed`, once `settle` was asked,
    how many seeds in all would show a difference of this size with 80 % probability (None where that is not
    known or is hopeless).
    """

    a: str
    b: str
    difference: Interval
    effect: float | None
    p: float | None
    p_corrected: float | None
    detectable: bool
    seeds_needed: int | None = None


def interval(
    values: Sequence[float],
    *,
    method: Literal["t", "bootstrap"] = "t",
    resolution: float = 0.0,
    level: float = LEVEL,
) -> Interval:
    """Mean of values, one per seed, with its interval: Student's t, or the bias-corrected bootstrap (BCa).

    `resolution` is the step in which the values are measured (one image of n: 1 / n); the spread is taken to
    be at least that of rounding to it, since equal values of a few seeds do not prove certainty. The bootstrap
    needs some ten seeds to be honest. Raises ValueError without values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("interval: no values; expected one per seed")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, None, None, 1)
    from scipy import special

    if method == "bootstrap" and np.ptp(x) > 0:
        from scipy import stats

        found = stats.bootstrap(
            (x,), np.mean, confidence_level=level, method="BCa", n_resamples=4999, rng=np.random.default_rng(0)
        ).confidence_interval
        return Interval(mean, float(found.low), float(found.high), x.size)
    half = float(special.stdtrit(x.size - 1, (1 + level) / 2)) * _spread(x, resolution) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the order given (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def compare_all(
    values: Mapping[str, Mapping[int, float]], *, resolution: float = 0.0, method: Literal["t", "bootstrap"] = "t"
) -> list[Comparison]:
    """Every pair of variants, compared over the seeds they share and corrected together.

    `values` maps a variant to its value at each seed. A pair without a common seed is left out.
    """
    pairs: list[tuple[str, str, np.ndarray]] = []
    for a, b in combinations(values, 2):
        shared = sorted(values[a].keys() & values[b].keys())
        if shared:
            pairs.append((a, b, np.array([values[a][s] - values[b][s] for s in shared], dtype=np.float64)))
    p_values = [_p_value(d, resolution) for _, _, d in pairs]
    tested = [i for i, p in enumerate(p_values) if p is not None]
    corrected = dict(zip(tested, holm([p for p in p_values if p is not None]), strict=True))
    result = []
    for i, (a, b, d) in enumerate(pairs):
        spread = _spread(d, resolution) if d.size > 1 else None
        detectable = corrected.get(i, 1.0) <= 1 - LEVEL
        result.append(
            Comparison(
                a=a,
                b=b,
                difference=interval(d.tolist(), method=method, resolution=resolution),
                effect=None if not spread else float(d.mean()) / spread,
                p=p_values[i],
                p_corrected=corrected.get(i),
                detectable=detectable,
            )
        )
    return result


def settle(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, those without a detectable difference told how many seeds would show one."""
    return [
        c if c.detectable or not c.effect else replace(c, seeds_needed=seeds_needed(c.effect, 1.0, len(comparisons)))
        for c in comparisons
    ]


def seeds_needed(difference: float, spread: float, comparisons: int = 1) -> int | None:
    """How many seeds a paired t test needs to detect a difference with 80 % power at 5 % over all comparisons.

    `spread` is the standard deviation of the paired differences. None if more than 1,000 would be needed.
    """
    from scipy import stats

    if difference == 0:
        return None
    alpha = (1 - LEVEL) / comparisons

    def power(n: int) -> float:
        critical = stats.t.ppf(1 - alpha / 2, n - 1)
        return float(stats.nct.sf(critical, n - 1, abs(difference) / spread * math.sqrt(n)))

    if not power(MOST_SEEDS) >= POWER:
        return None
    low, high = 1, MOST_SEEDS  # power(low) is not enough, power(high) is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _p_value(differences: np.ndarray, resolution: float) -> float | None:
    """Two-sided p-value of the paired t test; None with one seed."""
    if differences.size < 2:
        return None
    from scipy import special

    spread = _spread(differences, resolution)
    if spread == 0:
        return 1.0 if differences[0] == 0 else 0.0
    t = float(differences.mean()) / (spread / math.sqrt(differences.size))
    return float(2 * special.stdtr(differences.size - 1, -abs(t)))


def _spread(x: np.ndarray, resolution: float) -> float:
    """Standard deviation, at least that of the difference of two numbers rounded to `resolution`."""
    spread = float(x.std(ddof=1)) if np.ptp(x) > 0 else 0.0
    return max(spread, resolution / math.sqrt(6))
