"""Norms that differ from one of the six kinds in a stage or two: each is its base with right formulas of its own.

What holds of the base (the axes that are pooled, its slips, its running statistics) holds of the relative, too. Some
bear a second name of a kind and no formula of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from normlab.check.oracle import KINDS, RIGHT, Array, InputGradient, Pass, Recipe, Stages
from normlab.errors import UsageError


@dataclass(frozen=True)
class Relative:
    """A norm by its base, what of the base's formula is different, and its formula in words."""

    base: str
    formula: str = ""
    own: Stages = RIGHT
    centred: bool = True
    dx: InputGradient | None = None
    gate: Callable[[int], Array] | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """The base's recipe with the relative's formulas."""
        return replace(
            recipe, own=self.own, own_dx=self.dx, own_gate=self.gate, centred=self.centred, formula=self.formula
        )


def _mean_only(p: Pass, dy: Array, weight: Array) -> Array:
    g = dy * weight
    return g if p.running is not None else g - p.pool(g)


def _variance_only(p: Pass, dy: Array, weight: Array) -> Array:
    g = dy * weight
    return g / p.std if p.running is not None else g / p.std - (p.x - p.mean) * p.pool(g * p.x) / p.std**3


def _length_only(p: Pass, dy: Array, weight: Array) -> Array:
    g, long = dy * weight, p.std > p.eps
    return np.where(long, g - p.xhat * p.pool(g * p.xhat) * p.count, g) / p.std


RELATIVES = {
    "bn": Relative("batch"),
    "torch-bn": Relative("batch"),
    "ln": Relative("layer"),
    "in": Relative("instance"),
    "gn": Relative("group"),
    "bin": Relative("batch-instance"),
    "channel-ln": Relative("layer"),
    "ln-elementwise": Relative("layer"),
    "ibn-b": Relative("instance"),
    "gn-shared": Relative(
        "group", "y = weight * (x - mean) / sqrt(var + eps) + bias, weight and bias one number for each group"
    ),
    "frn": Relative(
        "instance", "y = weight * x / sqrt(mean(x^2) + eps) + bias, mean per sample and channel", RIGHT, False
    ),
    "power": Relative("batch", "y = weight * x / sqrt(mean(x^2) + eps) + bias, mean per channel", RIGHT, False),
    "mobn": Relative(
        "batch",
        "y = weight * (x - mean) + bias, mean per channel",
        Stages(deviation=lambda p: np.ones((1, 1, 1, 1))),
        dx=_mean_only,
    ),
    "vobn": Relative(
        "batch",
        "y = weight * x / sqrt(var + eps) + bias, var per channel",
        Stages(center=lambda p: p.x),
        dx=_variance_only,
    ),
    "scalenorm": Relative(
        "rms",
        "y = g * x / max(|x|, eps), |x| the L2 norm of a position's channels",
        Stages(deviation=lambda p: np.maximum(np.sqrt(p.biased * p.count), p.eps)),
        dx=_length_only,
    ),
    "ibn-a": Relative(
        "batch-instance",
        "instance norm of the first half of the channels, batch norm of the others",
        gate=lambda channels: np.repeat([0.0, 1.0], [channels // 2, channels - channels // 2]),
    ),
}
NAMES = (*KINDS, *RELATIVES)

_OF_WEIGHTS = "it normalizes the weights of another layer, and takes no input of its own"
_OF_TWO = "it takes a second input"
_OF_POINTS = "it pools nothing: there are no statistics to check"
# the other members of the family, and why none of the six kinds has their formula
NOT_CHECKED = {
    "none": _OF_POINTS,
    "dyt": _OF_POINTS,
    "derf": _OF_POINTS,
    "layerscale": _OF_POINTS,
    "brn": "its clips follow a schedule",
    "ghost": "how it divides a batch into parts is its own choice",
    "sn": "it has parameters besides weight, bias and gate",
    "evonorm-b0": "it has parameters besides weight, bias and gate",
    "evonorm-s0": "it has parameters besides weight, bias and gate",
    "frn-tlu": "its threshold is a parameter besides weight, bias and gate",
    "grn": "it divides one statistic by the mean of others, and adds its input",
    "adanorm": "its scale is made of its output, by two constants of its own",
    "divisive": "it pools over windows",
    "lrn": "it pools over windows",
    "qk": "it pools over heads, a number that it is not asked for",
    "frozen": "its statistics are constants, none of its input's",
    **dict.fromkeys(("cbn", "adain", "film", "adaln", "adaln-zero", "spade"), _OF_TWO),
    **dict.fromkeys(("ws", "sws", "wn", "spectral"), _OF_WEIGHTS),
}


def base_of(kind: str | None) -> str | None:
    """The kind that a norm is checked as; raises UsageError for names that are no norm's."""
    if kind is None or kind in KINDS:
        return kind
    if kind in NOT_CHECKED:
        raise UsageError(f"--as {kind}: not checked as itself: {NOT_CHECKED[kind]}; expected one of {', '.join(NAMES)}")
    if kind not in RELATIVES:
        raise UsageError(f"--as {kind!r}: expected one of {', '.join(NAMES)}")
    return RELATIVES[kind].base


def as_relative(kind: str | None, recipe: Recipe) -> Recipe:
    """A recipe with the formulas of the norm that is named."""
    return RELATIVES[kind].of(recipe) if kind is not None and kind in RELATIVES else recipe
