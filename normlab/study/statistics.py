"""What the seeds of a study are evidence for: intervals that hold together, for all pairs of norms and at every look.

A few seeds say little about the spread of one norm, so the norms lend each other what they have
(`normlab.study.spreads`). Šidák's correction makes the intervals of all pairs hold together, and the error of 5 % is
spent over the looks at 2, 3, 4 ... seeds, so that a study may be looked at after every seed. What one look has shown,
the next does not take back: the intervals of all looks hold together, hence so does what they have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from normlab.study.spreads import expit, fitted, rounding

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 50  # a difference that takes more is not worth settling
RESOLUTION = 1e-3  # of accuracies whose number of images is not known

# of the error of 5 %, what each look may spend, by its number of seeds; calibrated in benchmarks/verdicts
_SPENT = {2: 0.0002, 3: 0.018, 4: 0.008, 5: 0.005}
_LATER = 0.015  # of the looks after these, over the number of seeds

Array = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds with its interval; `low` and `high` are None with one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float:
        """Half of its width; NaN where there is no interval."""
        return math.nan if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def negated(self) -> Interval:
        """The interval of the same difference the other way round."""
        return Interval(
            -self.mean, None if self.high is None else -self.high, None if self.low is None else -self.low, self.n
        )

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Comparison:
    """How two norms differ: `difference` is the mean of a minus that of b, with its simultaneous interval.

    `error` is the standard error of the difference. They are `detectable`, that is distinguished, if the interval
    excludes 0; they are the `same` if it lies within what matters. `seeds_needed` is the number of seeds in all that
    would tell them apart with a probability of 80 %, where that was asked and is not hopeless.
    """

    a: str
    b: str
    difference: Interval
    error: float | None
    detectable: bool
    same: bool
    seeds_needed: int | None = None

    def seen_from(self, norm: str) -> Comparison:
        """The same comparison with `norm`, which is one of the two, as a."""
        return self if norm == self.a else replace(self, a=self.b, b=self.a, difference=self.difference.negated)


def interval(values: Sequence[float], *, resolution: float = 0.0) -> Interval:
    """Mean of values, one per seed, with its Student interval.

    `resolution` is the step in which the values are measured (one image of n: 1 / n); the spread is taken to be at
    least that of rounding to it, since equal values of a few seeds do not prove certainty. Values that are not finite
    are left out; the mean of none is NaN.
    """
    x = np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
    if x.size < 2:
        return Interval(float(x[0]) if x.size else math.nan, None, None, x.size)
    mean, spread = float(x.mean()), max(float(x.var(ddof=1)), rounding(resolution))
    half = student(x.size - 1) * math.sqrt(spread / x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def student(freedom: int) -> float:
    """Half of Student's 95 % interval, in standard errors, with that many degrees of freedom."""
    from scipy import special

    return float(-special.stdtrit(freedom, (1 - LEVEL) / 2))


def mean_intervals(values: Mapping[str, Sequence[float]], *, resolution: float = RESOLUTION) -> dict[str, Interval]:
    """The mean accuracy of each norm on these test images with its own 95 % interval; the spreads are shared."""
    arms = _arms(values)
    found = {norm: Interval(float(x.mean()), None, None, x.size) for norm, x in arms.items()}
    repeated = [norm for norm, x in arms.items() if x.size > 1]
    if repeated:
        spreads = fitted([arms[norm] for norm in repeated], resolution)
        half = spreads.reach_of_means(1 - LEVEL)
        low, high = expit(spreads.logits - half), expit(spreads.logits + half)
        for at, norm in enumerate(repeated):
            mean = found[norm].mean
            found[norm] = replace(found[norm], low=min(float(low[at]), mean), high=max(float(high[at]), mean))
    return found


def compare_all(
    values: Mapping[str, Sequence[float]],
    *,
    resolution: float = RESOLUTION,
    images: int | None = None,
    matters: float = 0.0,
    looks: bool = True,
) -> list[Comparison]:
    """Every pair of norms, their intervals simultaneous over all pairs and over all looks up to this one.

    `values` has the accuracies of each norm in the order of its seeds. Without `looks` the study is looked at once
    only, and all of the error is spent on that. With `images` the claim is about all images of which so many are the
    test split; without, about these alone. A pair in which a norm has one seed has no interval.
    """
    arms = _arms(values)
    names, (first, second) = list(arms), _pairs(len(arms))
    low, high = np.full(first.size, -1.0), np.full(first.size, 1.0)
    error = np.full(first.size, math.nan)
    most = max((x.size for x in arms.values()), default=0)
    for look in _numbers_of_seeds(most) if looks else [most]:
        now = [i for i, norm in enumerate(names) if min(arms[norm].size, look) > 1]
        if len(now) < 2:
            continue
        spreads = fitted([arms[names[i]][:look] for i in now], resolution, images)
        a, b = _pairs(len(now))
        reach = spreads.reach(a, b, of_a_pair(spent(look) if looks else 1 - LEVEL, len(now)))
        middle = spreads.logits[a] - spreads.logits[b]
        position = {pair: at for at, pair in enumerate(zip(first, second, strict=True))}
        here = [position[now[i], now[j]] for i, j in zip(a, b, strict=True)]
        low[here] = np.maximum(low[here], spreads.differences(a, b, middle - reach))
        high[here] = np.minimum(high[here], spreads.differences(a, b, middle + reach))
        error[here] = spreads.error(a, b)
    found = []
    for at, (i, j) in enumerate(zip(first, second, strict=True)):
        x, y = arms[names[i]], arms[names[j]]
        mean, n = float(x.mean() - y.mean()), min(x.size, y.size)
        known = math.isfinite(error[at])
        ends = sorted((float(low[at]), float(high[at])))  # looks that contradict each other leave a gap between them
        told = known and (ends[0] > 0 or ends[1] < 0)
        found.append(
            Comparison(
                names[i],
                names[j],
                Interval(mean, min(ends[0], mean) if known else None, max(ends[1], mean) if known else None, n),
                float(error[at]) if known else None,
                told and (mean > 0) == (ends[0] > 0),
                known and not told and max(-ends[0], ends[1]) <= matters,
            )
        )
    return found


def spent(look: int) -> float:
    """How much of the error the look at that many seeds may spend."""
    return _SPENT.get(look, _LATER / look if look > max(_SPENT) else 0.0)


def of_a_pair(alpha: float, norms: int) -> float:
    """The error that each pair of that many norms may make if all pairs together may make `alpha` (Šidák)."""
    return float(1 - (1 - alpha) ** (1 / math.comb(norms, 2)))


def chances(
    values: Mapping[str, Sequence[float]],
    a: str,
    b: str,
    *,
    resolution: float = RESOLUTION,
    images: int | None = None,
    draws: int = 100,
) -> dict[int, float]:
    """The probability that two norms are distinguished with that many seeds in all, by simulation from what is known.

    Each draw takes a difference and spreads that the seeds so far allow, adds seeds to those that there are, and
    compares again. The numbers of seeds end where 80 % is reached, or at `MOST_SEEDS`; they are none where a norm has
    fewer than two seeds. The draws are the same at every call.
    """
    arms = _arms(values)
    names = [norm for norm, x in arms.items() if x.size > 1]
    if a not in names or b not in names:
        return {}
    so_far = [arms[norm] for norm in names]
    now, rng = max(arms[a].size, arms[b].size), np.random.default_rng(0)
    true, spread = fitted(so_far, resolution, images).draws(draws, rng)
    more = expit(true[:, :, None] + spread[:, :, None] * rng.normal(size=(draws, len(names), MOST_SEEDS)))
    pair = np.array([names.index(a)]), np.array([names.index(b)])
    told, found = np.zeros(draws, dtype=bool), {}
    for n in _coarse(now):
        runs = [
            np.concatenate([np.broadcast_to(x, (draws, x.size)), more[:, i, : max(0, n - x.size)]], axis=1)
            for i, x in enumerate(so_far)
        ]
        new = fitted(runs, resolution, images)
        gap = np.abs(new.logits[:, pair[0]] - new.logits[:, pair[1]])
        told |= new.tail(*pair, gap)[:, 0] < of_a_pair(spent(n), len(names))
        found[n] = float(told.mean())
        if found[n] >= POWER:
            break
    return found


def seeds_needed(chances: Mapping[int, float]) -> int | None:
    """How many seeds in all distinguish two norms with a probability of 80 %; None where none of these do."""
    return next((seeds for seeds, chance in chances.items() if chance >= POWER), None)


def _arms(values: Mapping[str, Sequence[float]]) -> dict[str, Array]:
    """The finite values of each norm that has any."""
    found = {norm: np.array([v for v in given if math.isfinite(v)], dtype=np.float64) for norm, given in values.items()}
    return {norm: x for norm, x in found.items() if x.size}


def _pairs(count: int) -> tuple[Places, Places]:
    """The positions of both members of every pair."""
    pairs = np.array(list(combinations(range(count), 2)), dtype=np.intp).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _numbers_of_seeds(most: int) -> list[int]:
    """The numbers of seeds at which a study of `most` seeds has been looked at."""
    return [n for n in range(2, most + 1) if n <= 12 or n % 4 == 0 or n == most]


def _coarse(now: int) -> list[int]:
    """Numbers of seeds to try, further apart the further they are."""
    found, n = [], now + 1
    while n <= MOST_SEEDS:
        found.append(n)
        n += max(1, (n - now) // 2 + 1)
    return found
