"""How widely norms spread from seed to seed, as far as a few seeds show it, and how sure their differences are.

Everything is on the logit scale, log(p / (1 - p)) of an accuracy p: there norms of any accuracy spread about alike
(the seven of the digits, from 59 to 96 %, by .25 to .9), and no interval leaves [0, 1]. A spread is one of a grid. Most
norms have about the common one, some have one of their own; how likely each is follows from all seeds of all norms by
Bayes' rule. A norm whose trainings learn does not spread without bounds: a standard deviation of 1, which is from 88
to 98 % about 95 %, is hardly ever exceeded. So a norm may be far behind however wide it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GRID = np.geomspace(0.004, 1.6, 25)  # standard deviations between seeds, on the logit scale
_ALIKE = 0.35  # of the logarithm: how far a norm's spread is from the common one
_OWN = 0.5  # how many norms of a study have a spread of their own, about
_USUAL = 1.0  # a wider spread is the less likely the wider it is
_HALVINGS = 17  # of the logarithm of an interval's width
# what test images favour one norm by in all of its seeds, of the variance p (1 - p) / images; measured on the digits
_LUCK = 0.05

Array = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Spreads:
    """The means of k norms, and what their spreads may be; ... stands for studies that are looked at together.

    `means` is (..., k), `counts` (k,). `common` (..., T) weighs the common spreads, and `own` (..., k, T, G) the
    spreads of each norm for each of them. `luck` (..., k) is the variance by the test images.
    """

    means: Array
    counts: Array
    common: Array
    own: Array
    luck: Array

    @property
    def logits(self) -> Array:
        """The means on the logit scale."""
        return _logit(self.means)

    def variances(self) -> Array:
        """The expected variance of each mean, (..., k), on the logit scale."""
        return self._weights_of_each() @ _GRID**2 / self.counts + self.luck

    def tail(self, a: Places, b: Places, distance: Array) -> Array:
        """Two-sided p-values of differences of the pairs (a, b) that are so far from 0."""
        return _tail(*self._pairs(a, b), distance)

    def reach(self, a: Places, b: Places, alpha: float) -> Array:
        """Half the width of the intervals of the pairs' differences: the distance whose p-value is `alpha`."""
        return _half_width(*self._pairs(a, b), alpha)

    def reach_of_means(self, alpha: float) -> Array:
        """Half the width of each mean's interval, on these test images."""
        return _half_width(self._weights_of_each(), _GRID / np.sqrt(self.counts[:, None]), alpha)

    def differences(self, a: Places, b: Places, logits: Array) -> Array:
        """The differences in accuracy that go with such differences of the pairs on the logit scale.

        Both accuracies move from their means towards each other, each in proportion to its variance.
        """
        variances, at = self.variances(), self.logits
        part = variances[..., a] / (variances[..., a] + variances[..., b])
        off = logits - (at[..., a] - at[..., b])
        return expit(at[..., a] + part * off) - expit(at[..., b] - (1 - part) * off)

    def error(self, a: Places, b: Places) -> Array:
        """The standard errors of the pairs' differences in accuracy."""
        slope = (self.means * (1 - self.means)) ** 2
        variances = np.maximum(slope, 1e-12) * self.variances()
        return np.sqrt(variances[..., a] + variances[..., b])

    def draws(self, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """True means and spreads of seeds (size, k) on the logit scale that the seeds of one study allow."""
        which = rng.choice(len(self.common), size=size, p=self.common)
        uniform = rng.random((size, len(self.counts), 1))
        at = (np.cumsum(self.own[:, which].swapaxes(0, 1), axis=-1) < uniform).sum(axis=-1)
        spread = _GRID[np.minimum(at, len(_GRID) - 1)]
        error = np.sqrt(spread**2 / self.counts + self.luck)
        return self.logits + error * rng.standard_normal(spread.shape), spread

    def _weights_of_each(self) -> Array:
        return np.einsum("...t,...ktg->...kg", self.common, self.own)

    def _pairs(self, a: Places, b: Places) -> tuple[Array, Array]:
        """Of each pair: the weights of both spreads (..., pairs, G * G), and the standard errors that go with them."""
        one, other = self.own[..., a, :, :], self.own[..., b, :, :]
        weights = (one * self.common[..., None, :, None]).swapaxes(-1, -2) @ other
        variances = ((_GRID**2)[:, None] / self.counts[a][:, None, None] + _GRID**2 / self.counts[b][:, None, None]) + (
            self.luck[..., a] + self.luck[..., b]
        )[..., None, None]
        flat = (*weights.shape[:-2], -1)
        return weights.reshape(flat), np.sqrt(np.broadcast_to(variances, weights.shape)).reshape(flat)


def fitted(arms: Sequence[Array], resolution: float, images: int | None = None) -> Spreads:
    """What the arms' accuracies, each (..., seeds), say of their spreads.

    `resolution` is the step in which accuracies are measured. With `images` the claim is about all images of which so
    many are the test split; without, about these test images.
    """
    counts = np.array([x.shape[-1] for x in arms], dtype=np.float64)
    edge = max(resolution, 1e-9) / 2
    means = np.clip(np.stack([x.mean(axis=-1) for x in arms], axis=-1), 0, 1)
    inner = np.clip(means, edge, 1 - edge)
    slope = inner * (1 - inner)
    variances = np.maximum(np.stack([x.var(axis=-1, ddof=1) for x in arms], axis=-1), rounding(resolution))
    freedom = (counts - 1)[:, None]
    ratio = (variances / slope**2)[..., None] / _GRID**2
    likelihood = freedom / 2 * (np.log(ratio) - ratio)
    likelihood = np.exp(likelihood - likelihood.max(axis=-1, keepdims=True))
    own = _prior_of_spreads(_OWN / len(arms)) * likelihood[..., None, :]
    total = own.sum(axis=-1)
    common = np.log(total).sum(axis=-2)
    common = np.exp(common - common.max(axis=-1, keepdims=True))
    luck = _LUCK / (images * slope) if images else np.zeros_like(slope)
    return Spreads(inner, counts, common / common.sum(axis=-1, keepdims=True), own / total[..., None], luck)


def rounding(resolution: float) -> float:
    """The variance of the difference of two numbers that are measured in such steps."""
    return max(resolution, 1e-9) ** 2 / 6


def expit(x: Array) -> Array:
    """The accuracy of a logit."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _logit(p: Array) -> Array:
    return np.asarray(np.log(p / (1 - p)))


def _prior_of_spreads(own: float) -> Array:
    """How likely each spread of a norm is (T, G) for each common one, if a share `own` of norms differ from it."""
    logs = np.log(_GRID)
    alike = np.exp(-((logs - logs[:, None]) ** 2) / (2 * _ALIKE**2))
    wide = np.where(_GRID > _USUAL, (_USUAL / _GRID) ** 4, 1.0)
    alike, broad = alike * wide, wide / wide.sum()
    return np.asarray((1 - own) * alike / alike.sum(axis=1, keepdims=True) + own * broad)


def _tail(weights: Array, errors: Array, distance: Array) -> Array:
    from scipy import special

    return np.asarray((weights * 2 * special.ndtr(-distance[..., None] / errors)).sum(axis=-1))


def _half_width(weights: Array, errors: Array, alpha: float) -> Array:
    from scipy import special

    ends = -special.ndtri(alpha / 2) * errors
    low, high = ends.min(axis=-1), ends.max(axis=-1)
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        inside = _tail(weights, errors, middle) > alpha
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(high)
