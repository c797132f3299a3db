"""What a wrong formula is: one stage of the oracle exchanged, with a name, words and the right formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normlab.check.oracle import (
    KINDS,
    Array,
    Case,
    InputGradient,
    Mix,
    ParameterGradient,
    Scale,
    Standardize,
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
    standardize: Standardize | None = None
    scale: Scale | None = None
    mix: Mix | None = None
    whole: Callable[[Case], Array] | None = None
    only_running: bool = False

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        if self.whole is not None:
            return self.whole(case)
        stages = {"standardize": self.standardize, "scale": self.scale, "mix": self.mix}
        return forward(case, **{k: v for k, v in stages.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class GradientSlip(Slip):
    """A wrong gradient with respect to `of`: x, weight, bias or gate."""

    of: str = "x"
    dx: InputGradient | None = None
    whole: Callable[[Case, Array], Array] | None = None
    parameter: ParameterGradient | None = None

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        assert dy is not None
        if self.whole is not None:
            return self.whole(case, dy)
        if self.dx is not None:
            return input_gradient(case, dy, self.dx)
        assert self.parameter is not None
        return self.parameter(case.recipe.to_grid(dy), case, mixed(case))


@dataclass(frozen=True)
class StateSlip(Slip):
    """A wrong update of one running statistic, `of` "mean" or "var"; or of both."""

    of: str = "both"
    mean: Callable[[Update], Array] | None = None
    var: Callable[[Update], Array] | None = None


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
