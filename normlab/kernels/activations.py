"""Activations that a normalization layer can apply to its own output, in the same pass over memory.

`y = act(z)` with z = norm(x) or norm(x) + residual. The backward pass computes z again instead of keeping it, and
multiplies the incoming gradient by act'(z).

| name | act(z) |
|---|---|
| `relu` | max(z, 0) |
| `leaky_relu`, `leaky_relu:slope=0.2` | z where z > 0, else slope * z; the slope is 0.01 unless given |
| `silu` | z * sigmoid(z) (Elfwing, Uchibe & Doya 2018, arXiv:1702.03118) |
| `gelu` | z * Phi(z), Phi the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415; not its tanh form) |
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from normlab.errors import UsageError
from normlab.norms.grid import Array, library

NAMES = ("relu", "leaky_relu", "silu", "gelu")
SLOPE = 0.01  # torch's default


class Activation(NamedTuple):
    """An activation by name; `slope` is that of the leaky one for z <= 0."""

    name: str
    slope: float = SLOPE

    def __str__(self) -> str:
        return f"{self.name}:slope={self.slope}" if self.name == "leaky_relu" and self.slope != SLOPE else self.name


@cache
def activation(spec: str | Activation | None) -> Activation | None:
    """The activation that `spec` names, None for None; raises UsageError for a name or a slope that is not known."""
    if spec is None or isinstance(spec, Activation):
        return spec
    name, _, option = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name not in NAMES:
        raise UsageError(f"act={spec!r} is not known; expected None or one of: {', '.join(NAMES)}")
    if not option:
        return Activation(name)
    key, _, number = option.partition("=")
    try:
        if name == "leaky_relu" and key == "slope" and math.isfinite(float(number)):
            return Activation(name, float(number))
    except ValueError:
        pass
    raise UsageError(f"act={spec!r}: expected an activation without options, or 'leaky_relu:slope=0.2'")


def apply(act: Activation, z: Array) -> Array:
    """act(z)."""
    one = library(z)
    if act.name == "relu":
        return one.where(z <= 0, 0 * one.ones_like(z), z)
    if act.name == "leaky_relu":
        return one.where(z > 0, z, act.slope * z)
    return z * (_sigmoid(z) if act.name == "silu" else _normal(z))


def derivative(act: Activation, z: Array) -> Array:
    """act'(z); at the kink of relu and leaky_relu, z = 0, that of z < 0, as torch."""
    one = library(z)
    if act.name in ("relu", "leaky_relu"):
        low = 0.0 if act.name == "relu" else act.slope
        return one.where(z > 0, one.ones_like(z), low * one.ones_like(z))
    if act.name == "silu":
        return _sigmoid(z) * (1 + z * _sigmoid(-z))  # not 1 - sigmoid(z), which loses the digits of a small one
    return _normal(z) + z * one.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), from the exponential of a number that is not positive, which cannot overflow."""
    if not isinstance(z, np.ndarray | np.floating):  # of an array of one number, arithmetic returns a scalar
        return z.sigmoid()
    small = np.exp(-np.abs(z))
    return np.where(z < 0, small, 1.0) / (1 + small)


def _normal(z: Array) -> Any:
    """The distribution function of the normal distribution, (1 + erf(z / sqrt(2))) / 2, with all digits on the left."""
    if not isinstance(z, np.ndarray):
        return 0.5 * (1 + (z * math.sqrt(0.5)).erf())
    return 0.5 * np.asarray(_erfc(z * -math.sqrt(0.5)), np.float64)


_erfc = np.frompyfunc(math.erfc, 1, 1)  # of each number: NumPy has no error function
