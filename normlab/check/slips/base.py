"""What a wrong formula is: a stage of the oracle exchanged, with a name, words and the right formula.

Two slips about different stages can be made at once: `together`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from normlab.check.oracle import (
    KINDS,
    RIGHT,
    Array,
    Case,
    Pass,
    Stages,
    batch_moments,
    forward,
    input_gradient,
    mixed,
)

Y = "y = weight * (x - mean) / sqrt(var + eps) + bias"
DX = "dx = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps), g = weight * dy"
RMS_Y = "y = weight * x / sqrt(mean(x^2) + eps)"
MIX = "xhat = gate * xhat_batch + (1 - gate) * xhat_instance"
CENTRING = tuple(k for k in KINDS if k != "rms")
BIN = ("batch-instance",)


@dataclass(frozen=True)
class Slip:
    """A named wrong formula: `cause` is its identifier, `sentence` the words, `formula` the right formula."""

    cause: str
    sentence: str
    formula: str
    kinds: tuple[str, ...] = KINDS

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardSlip(Slip):
    """A wrong output: the stages that are exchanged."""

    stages: Stages = RIGHT
    only_running: bool = False

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        return forward(replace(case, stages=self.stages))

    def together(self, other: ForwardSlip) -> ForwardSlip | None:
        """Both slips at once; None where they are about the same stage."""
        stages = self.stages.together(other.stages)
        if stages is None:
            return None
        return ForwardSlip(
            *_both_names(self, other), stages=stages, only_running=self.only_running or other.only_running
        )


Pool = Callable[[Pass, Array], Array]


@dataclass(frozen=True)
class Backward:
    """The formula of dx in stages; None is the right one.

    g = weigh(dy, weight), pooled by `pool`; from g the terms through the `mean` and the `variance` are taken off, each
    of g unless `mean_of` and `variance_of` make something else of dy; the rest is divided by `divide`, and `after`
    makes dx of it.
    """

    weigh: Callable[[Pass, Array, Array], Array] | None = None
    pool: Pool | None = None
    mean: Callable[[Pass, Array, Pool], Array] | None = None
    variance: Callable[[Pass, Array, Pool], Array] | None = None
    mean_of: Callable[[Pass, Array, Array], Array] | None = None
    variance_of: Callable[[Pass, Array, Array], Array] | None = None
    divide: Callable[[Pass], Array] | None = None
    after: Callable[[Pass, Array, Array], Array] | None = None
    whole: Callable[[Case, Array], Array] | None = None

    def dx(self, p: Pass, dy: Array, weight: Array) -> Array:
        """dx on the grid."""
        pool = self.pool or Pass.pool
        g = self.weigh(p, dy, weight) if self.weigh else dy * weight
        if p.running is None or self.mean or self.variance:
            of_mean = self.mean_of(p, dy, weight) if self.mean_of else g
            of_variance = self.variance_of(p, dy, weight) if self.variance_of else g
            g = g - self._dx_through_mean(p, of_mean, pool) - self._through_variance(p, of_variance, pool)
        dx = g / (self.divide(p) if self.divide else p.std)
        return self.after(p, dx, weight) if self.after else dx

    def _dx_through_mean(self, p: Pass, g: Array, pool: Pool) -> Array:
        if self.mean is not None:
            return self.mean(p, g, pool)
        return pool(p, g) if p.recipe.centers else np.zeros((1, 1, 1, 1))

    def _through_variance(self, p: Pass, g: Array, pool: Pool) -> Array:
        return self.variance(p, g, pool) if self.variance is not None else p.xhat * pool(p, g * p.xhat)

    def together(self, other: Backward) -> Backward | None:
        """Both slips at once; None where they are about the same stage."""
        mine, others = ({f.name: getattr(s, f.name) for f in fields(Backward)} for s in (self, other))
        if self.whole or other.whole or any(mine[k] and others[k] for k in mine):
            return None
        return Backward(**{k: others[k] if v is None else v for k, v in mine.items()})


@dataclass(frozen=True)
class GradientSlip(Slip):
    """A wrong gradient with respect to `of`: x, weight, bias or gate."""

    of: str = "x"
    dx: Backward | None = None
    parameter: Callable[[Array, Case, Array], Array] | None = None

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        assert dy is not None
        if self.dx is not None:
            return self.dx.whole(case, dy) if self.dx.whole else input_gradient(case, dy, self.dx.dx)
        assert self.parameter is not None
        return self.parameter(case.recipe.to_grid(dy), case, mixed(case))

    def together(self, other: GradientSlip) -> GradientSlip | None:
        """Both slips at once; None where they are about the same stage."""
        both = self.dx.together(other.dx) if self.dx and other.dx else None
        return None if both is None else GradientSlip(*_both_names(self, other), of="x", dx=both)


def _both_names(first: Slip, second: Slip) -> tuple[str, str, str, tuple[str, ...]]:
    formulas = dict.fromkeys((first.formula, second.formula))
    kinds = tuple(k for k in first.kinds if k in second.kinds)
    return f"{first.cause} + {second.cause}", f"{first.sentence}; and {second.sentence}", "; ".join(formulas), kinds


Blend = Callable[["Update", Array, Array], Array]


@dataclass(frozen=True)
class StateSlip(Slip):
    """A wrong update of the running statistics: of what is averaged (`mean`, `var`), or how (the two blends).

    A blend makes the new running value from the old one and the batch's.
    """

    mean: Callable[[Update], Array] | None = None
    var: Callable[[Update], Array] | None = None
    blend_mean: Blend | None = None
    blend_var: Blend | None = None

    @property
    def of_mean(self) -> bool:
        return bool(self.mean or self.blend_mean)

    @property
    def of_var(self) -> bool:
        return bool(self.var or self.blend_var)

    def predict_mean(self, u: Update) -> Array:
        return (self.blend_mean or Update.blend)(u, u.old_mean, self.mean(u) if self.mean else u.mean)

    def predict_var(self, u: Update) -> Array:
        return (self.blend_var or Update.blend)(u, u.old_var, self.var(u) if self.var else u.stored_var)

    def together(self, other: StateSlip) -> StateSlip | None:
        """Both slips at once; None where they are about the same stage."""
        names = ("mean", "var", "blend_mean", "blend_var")
        pairs = {n: (getattr(self, n), getattr(other, n)) for n in names}
        if any(a and b for a, b in pairs.values()):
            return None
        return StateSlip(*_both_names(self, other), **{n: a or b for n, (a, b) in pairs.items()})


@dataclass(frozen=True)
class Update:
    """What a training step has at hand when it updates the running statistics, (C,) arrays."""

    case: Case
    old_mean: Array
    old_var: Array
    mean: Array
    var: Array  # biased
    count: int
    m: float

    @classmethod
    def of(cls, case: Case) -> Update:
        assert case.running is not None
        mean, var, count = batch_moments(case)
        return cls(case, *case.running, mean, var, count, case.recipe.momentum)

    @property
    def stored_var(self) -> Array:
        """The batch variance as the dialect stores it."""
        unbiased = self.case.recipe.unbiased_running_var
        return self.var * self.count / max(self.count - 1, 1) if unbiased else self.var

    def blend(self, old: Array, new: Array, m: float | None = None) -> Array:
        m = self.m if m is None else m
        return (1 - m) * old + m * new
