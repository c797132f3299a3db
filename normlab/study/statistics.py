"""What the seeds of a study are evidence for: intervals that hold together, for all pairs of norms and at every look.

A few seeds say little about the spread of one norm, so the norms lend each other what they have: either all of them
spread alike (in proportion to p (1 - p) at an accuracy p, as on the logit scale), or each has a spread of its own, and
the data weigh the two. Each pair of norms gets a t interval averaged over what the spreads may be; Šidák's correction
makes the intervals of all pairs hold together, and the error of 5 % is spent over the looks at 2, 3, 4 ... seeds, so
that a study may be looked at after every seed. What one look has shown, the next does not take back: the intervals of
all looks hold together, hence so does what they have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 50  # a difference that takes more is not worth settling
RESOLUTION = 1e-3  # of accuracies whose number of images is not known

# of the error of 5 %, what each look may spend, by its number of seeds; calibrated in benchmarks/verdicts
_SPENT = {2: 1e-5, 3: 0.006, 4: 0.005, 5: 0.004}
_ALIKE, _OWN = 8.0, 0.35  # degrees of freedom that the other norms lend: a good deal, or next to none
_SCALES = np.linspace(-6.0, 2.0, 13)  # of the common spread, as logarithms relative to the largest variance
_NEGLIGIBLE = 1e-6  # a weight that is not worth computing with
_HALVINGS = 30  # of the logarithm of an interval's width
_FEW = 3  # so few norms have nothing to lend each other
_EDGE = 0.01  # an accuracy nearer than this to 0 or 1 counts as this far from it where spreads are put in proportion

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

    `error` is the standard error of the difference. They are `detectable`, that is told apart, if the interval
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
    mean, spread = float(x.mean()), _variances([x], resolution)[0]
    half = float(_quantile(x.size - 1, 1 - LEVEL)) * math.sqrt(spread / x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def mean_intervals(values: Mapping[str, Sequence[float]], *, resolution: float = RESOLUTION) -> dict[str, Interval]:
    """The mean accuracy of each norm with its own 95 % interval, within [0, 1]; the spreads are shared."""
    arms = _arms(values)
    found = {norm: Interval(float(x.mean()), None, None, x.size) for norm, x in arms.items()}
    repeated = [norm for norm, x in arms.items() if x.size > 1]
    if repeated:
        means, spreads = _fit([arms[norm] for norm in repeated], resolution)
        half = spreads.reach(np.arange(len(repeated)), None, 1 - LEVEL)
        for norm, mean, h in zip(repeated, means, half, strict=True):
            found[norm] = replace(found[norm], low=max(0.0, float(mean - h)), high=min(1.0, float(mean + h)))
    return found


def compare_all(
    values: Mapping[str, Sequence[float]],
    *,
    resolution: float = RESOLUTION,
    matters: float = 0.0,
    looks: bool = True,
) -> list[Comparison]:
    """Every pair of norms, their intervals simultaneous over all pairs and over all looks up to this one.

    `values` has the accuracies of each norm in the order of its seeds. Without `looks` the study is looked at once
    only, and all of the error is spent on that. A pair in which a norm has one seed has no interval.
    """
    arms = _arms(values)
    names, (first, second) = list(arms), _pairs(len(arms))
    low, high = np.full(first.size, -1.0), np.full(first.size, 1.0)
    error = np.full(first.size, math.nan)
    most = max((x.size for x in arms.values()), default=0)
    for look in _looks(most) if looks else [most]:
        now = [i for i, norm in enumerate(names) if min(arms[norm].size, look) > 1]
        if len(now) < 2:
            continue
        means, spreads = _fit([arms[names[i]][:look] for i in now], resolution)
        a, b = _pairs(len(now))
        alpha = 1 - (1 - (spent(look) if looks else 1 - LEVEL)) ** (1 / a.size)
        difference, half = means[a] - means[b], spreads.reach(a, b, alpha)
        position = {pair: at for at, pair in enumerate(zip(first, second, strict=True))}
        here = [position[now[i], now[j]] for i, j in zip(a, b, strict=True)]
        low[here], high[here] = np.maximum(low[here], difference - half), np.minimum(high[here], difference + half)
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
    """How much of the error the look at so many seeds may spend."""
    return _SPENT.get(look, 0.02 / look if look > max(_SPENT) else 0.0)


def seeds_needed(
    values: Mapping[str, Sequence[float]], a: str, b: str, *, resolution: float = RESOLUTION, draws: int = 100
) -> int | None:
    """How many seeds in all tell two norms apart with a probability of 80 %, by simulation from what is known.

    Each draw takes a difference and spreads that the seeds so far allow, adds seeds to those that there are, and
    compares again. None if more than `MOST_SEEDS` would be needed. The draws are the same at every call.
    """
    arms = _arms(values)
    names = [norm for norm, x in arms.items() if x.size > 1]
    if a not in names or b not in names:
        return None
    means, spreads = _fit([arms[norm] for norm in names], resolution)
    now, rng = max(arms[a].size, arms[b].size), np.random.default_rng(0)
    true, spread = spreads.draws(means, np.array([arms[norm].size for norm in names]), draws, rng)
    more = np.clip(true[:, :, None] + spread[:, :, None] * rng.normal(size=(draws, len(names), MOST_SEEDS)), 0, 1)
    first, second = names.index(a), names.index(b)
    told = np.zeros(draws, dtype=bool)
    for n in _coarse(now):
        so_far = [arms[norm] for norm in names]
        runs = [
            np.concatenate([np.broadcast_to(x, (draws, x.size)), more[:, i, : max(0, n - x.size)]], axis=1)
            for i, x in enumerate(so_far)
        ]
        new_means, new = _fit(runs, resolution)
        alpha = 1 - (1 - spent(n)) ** (1 / math.comb(len(names), 2))
        gap = np.abs(new_means[:, first] - new_means[:, second])
        told |= new.tail(np.array([first]), np.array([second]), gap[:, None])[:, 0] < alpha
        if told.mean() >= POWER:
            return n
    return None


@dataclass(frozen=True)
class _Spreads:
    """What the spreads of the norms may be: G possibilities, each with its weight.

    `weights` is (G, ...), `variances` of the means (G, ..., k) and their degrees of freedom `df` (G, ..., k), where
    ... stands for studies that are looked at together.
    """

    weights: Array
    variances: Array
    df: Array

    def _pair(self, a: Places, b: Places | None) -> tuple[Array, Array]:
        """The standard error and the degrees of freedom (Satterthwaite) of each difference, or of each mean."""
        one, df = self.variances[..., a], self.df[..., a]
        if b is None:
            return np.sqrt(one), df
        other = self.variances[..., b]
        both = one + other
        return np.sqrt(both), both**2 / (one**2 / df + other**2 / self.df[..., b])

    def tail(self, a: Places, b: Places | None, distance: Array) -> Array:
        """Two-sided p-values of differences that are so far from 0."""
        return self._tail(*self._pair(a, b), distance)

    def _tail(self, error: Array, df: Array, distance: Array) -> Array:
        from scipy import special

        return np.asarray((self.weights[..., None] * 2 * special.stdtr(df, -distance / error)).sum(axis=0))

    def reach(self, a: Places, b: Places | None, alpha: float) -> Array:
        """Half the width of the intervals: the distance whose p-value is `alpha`."""
        error, df = self._pair(a, b)
        ends = _quantile(df, alpha) * error
        low, high = ends.min(axis=0), ends.max(axis=0)
        for _ in range(_HALVINGS):
            middle = np.sqrt(low * high)
            inside = self._tail(error, df, middle) > alpha
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return high

    def error(self, a: Places, b: Places | None) -> Array:
        """The standard error of each difference, averaged over the possibilities."""
        return np.asarray(np.sqrt((self.weights[..., None] * self._pair(a, b)[0] ** 2).sum(axis=0)))

    def draws(self, means: Array, counts: Array, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Means and standard deviations (size, k) that the seeds allow, for one study."""
        which = rng.choice(len(self.weights), size=size, p=self.weights / self.weights.sum())
        df = self.df[which]
        variance = self.variances[which] * df / np.maximum(rng.chisquare(df), 1e-12)
        spread = np.minimum(np.sqrt(variance * counts), 0.5)
        return np.clip(means + np.sqrt(variance) * rng.normal(size=variance.shape), 0, 1), spread


def _fit(arms: Sequence[Array], resolution: float) -> tuple[Array, _Spreads]:
    """The means of the arms, each (..., n), and what their spreads may be."""
    means = np.stack([x.mean(axis=-1) for x in arms], axis=-1)
    variances = np.stack(_variances(arms, resolution), axis=-1)
    counts = np.array([x.shape[-1] for x in arms], dtype=np.float64)
    own = counts - 1
    if len(arms) <= _FEW:
        variances = variances / counts
        return means, _Spreads(
            np.ones((1, *means.shape[:-1])), variances[None], np.broadcast_to(own, variances.shape)[None]
        )
    level = np.clip(means, _EDGE, 1 - _EDGE)
    scale = (level * (1 - level)) ** 2
    logs = np.log(variances / scale)
    prior = logs.max(axis=-1, keepdims=True) + np.tile(_SCALES, 2).reshape(-1, *[1] * means.ndim)  # (G, ..., 1)
    lent = np.repeat((_ALIKE, _OWN), _SCALES.size).reshape(-1, *[1] * means.ndim)
    weights = _likelihood(logs - prior, own, lent).sum(axis=-1)
    weights = np.exp(weights - weights.max(axis=0))
    kept = weights.reshape(len(weights), -1).max(axis=1) > _NEGLIGIBLE
    weights, prior, lent = weights[kept], prior[kept], lent[kept]
    pooled = scale * (lent * np.exp(prior) + own * np.exp(logs)) / (lent + own)
    df = np.broadcast_to(lent + own, pooled.shape)
    return means, _Spreads(weights / weights.sum(axis=0), pooled / counts, df)


def _likelihood(ratio: Array, own: Array, lent: Array) -> Array:
    """Logarithm of the density of variances with `own` degrees of freedom about a common one (F), up to a constant."""
    from scipy import special

    return np.asarray(
        own / 2 * ratio
        - (own + lent) / 2 * np.log(lent + own * np.exp(ratio))
        + lent / 2 * np.log(lent)
        - special.betaln(own / 2, lent / 2)
    )


def _variances(arms: Sequence[Array], resolution: float) -> list[Array]:
    """The variance of each arm, (...), at least that of the difference of two numbers rounded to `resolution`."""
    least = max(resolution, 1e-9) ** 2 / 6
    return [np.maximum(x.var(axis=-1, ddof=1), least) for x in arms]


def _quantile(df: Array | int, alpha: float) -> Array:
    """The two-sided quantile of Student's t."""
    from scipy import special

    return np.asarray(-special.stdtrit(df, alpha / 2))


def _arms(values: Mapping[str, Sequence[float]]) -> dict[str, Array]:
    """The finite values of each norm that has any."""
    found = {norm: np.array([v for v in given if math.isfinite(v)], dtype=np.float64) for norm, given in values.items()}
    return {norm: x for norm, x in found.items() if x.size}


def _pairs(count: int) -> tuple[Places, Places]:
    """The positions of both members of every pair."""
    pairs = np.array(list(combinations(range(count), 2)), dtype=np.intp).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _looks(most: int) -> list[int]:
    """The numbers of seeds at which a study of `most` seeds has been looked at."""
    return [n for n in range(2, most + 1) if n <= 12 or n % 4 == 0 or n == most]


def _coarse(now: int) -> list[int]:
    """Numbers of seeds to try, further apart the further they are."""
    found, n = [], now + 1
    while n <= MOST_SEEDS:
        found.append(n)
        n += max(1, (n - now) // 2 + 1)
    return found
