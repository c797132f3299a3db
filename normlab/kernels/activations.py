"""Activations that a normalization layer can apply to its own output, in the same pass over memory.

`y = act(z)` with z = norm(x) or norm(x) + residual. The backward pass computes z again instead of keeping it, and
multiplies the incoming gradient by act'(z).

| name | act(z) |
|---|---|
| `relu` | max(z, 0) |
| `leaky_relu`, `leaky_relu:slope=0.2` | z where z > 0, else slope * z; the slope is 0.01 unless given |
| `silu` | z * sigmoid(z) (Elfwing, Uchibe & Doya 2018, arXiv:1702.03118) |
| `gelu` | z * Phi(z), Phi the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415; not its tanh form) |
| `relu6` | min(max(z, 0), 6) (Howard et al. 2017, arXiv:1704.04861) |
| `hardsigmoid` | relu6(z + 3) / 6 (Howard et al. 2019, arXiv:1905.02244) |
| `hardswish` | z * relu6(z + 3) / 6 (as above) |
| `elu`, `elu:alpha=0.5` | z where z > 0, else alpha * (exp(z) - 1); alpha is 1 unless given (Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289) |
| `tlu`, `tlu:threshold=-1` | max(z, threshold), which is 0 unless given (Singh & Krishnan 2020, arXiv:1911.09737, who learn it) |
| `mish` | z * tanh(log(1 + exp(z))) (Misra 2020, arXiv:1908.08681) |
| `quick_gelu` | z * sigmoid(1.702 * z) (Hendrycks & Gimpel, as above) |

At a kink the derivative is the one that torch has there.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from normlab.errors import UsageError
from normlab.norms.grid import Array, library


class Activation(NamedTuple):
    """An activation by name; `constant` is the number that it takes, if it takes one (`CONSTANTS`)."""

    name: str
    constant: float = 0.0

    def __str__(self) -> str:
        option, usual = CONSTANTS.get(self.name, ("", self.constant))
        return self.name if self.constant == usual else f"{self.name}:{option}={self.constant}"


CONSTANTS = {"leaky_relu": ("slope", 0.01), "elu": ("alpha", 1.0), "tlu": ("threshold", 0.0)}  # torch's names, defaults


@cache
def activation(spec: str | Activation | None) -> Activation | None:
    """The activation that `spec` names, None for None; raises UsageError for a name or a constant that is not known."""
    if spec is None or isinstance(spec, Activation):
        return spec
    name, _, given = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name not in NAMES:
        raise UsageError(f"act={spec!r} is not known; expected None or one of: {', '.join(NAMES)}")
    option, constant = CONSTANTS.get(name, ("", 0.0))
    if not given:
        return Activation(name, constant)
    key, _, number = given.partition("=")
    try:
        if option and key == option and math.isfinite(float(number)):
            return Activation(name, float(number))
    except ValueError:
        pass
    expected = f"'{name}:{option}={0.2}'" if option else f"{name!r}, which has no options"
    raise UsageError(f"act={spec!r}: expected {expected}")


def apply(act: Activation, z: Array) -> Array:
    """act(z)."""
    return _FORMULAS[act.name][0](library(z), z, act.constant)


def derivative(act: Activation, z: Array) -> Array:
    """act'(z); at a kink, torch's."""
    return _FORMULAS[act.name][1](library(z), z, act.constant)


# --- the formulas: of an array library, z, and the constant ----------------------------------------------------------

Formula = Callable[[Any, Array, float], Any]
_ROOT, _DENSITY, _QUICK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi), 1.702
_FLAT = 20.0  # from here on tanh(log(1 + exp(z))) is 1 in float64


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), from the exponential of a number that is not positive, which cannot overflow."""
    if not isinstance(z, np.ndarray | np.floating):  # of an array of one number, arithmetic returns a scalar
        return z.sigmoid()
    small = np.exp(-np.abs(z))
    return np.where(z < 0, small, 1.0) / (1 + small)


def _slope_of_silu(one: Any, z: Array, c: float) -> Array:
    return _sigmoid(z) * (1 + z * _sigmoid(-z))  # not 1 - sigmoid(z), which loses the digits of a small one


def _normal(z: Array) -> Any:
    """The distribution function of the normal distribution, (1 + erf(z / sqrt(2))) / 2, with all digits on the left."""
    if not isinstance(z, np.ndarray):
        return 0.5 * (1 + (z * _ROOT).erf())
    return 0.5 * np.asarray(_erfc(z * -_ROOT), np.float64)


_erfc = np.frompyfunc(math.erfc, 1, 1)  # of each number: NumPy has no error function


def _slope_of_gelu(one: Any, z: Array, c: float) -> Array:
    return _normal(z) + z * one.exp(-0.5 * z * z) * _DENSITY


def _mish(one: Any, z: Array, c: float) -> Array:
    n = _exp_and_growth(one, z)[1]
    return z * (n / (n + 2))


def _slope_of_mish(one: Any, z: Array, c: float) -> Array:
    e, n = _exp_and_growth(one, z)
    return n / (n + 2) + z.clip(max=_FLAT) * (e / (1 + e)) * (4 / (n + 2)) * ((n + 1) / (n + 2))


def _exp_and_growth(one: Any, z: Array) -> tuple[Array, Array]:
    """e = exp(z) and n = (1 + e)^2 - 1, with which tanh(log(1 + e)) is n / (n + 2)."""
    e = one.exp(z.clip(max=_FLAT))
    return e, e * (e + 2)


def _slope_of_quick_gelu(one: Any, z: Array, c: float) -> Array:
    return _slope_of_silu(one, _QUICK * z, c)


_FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "relu": (
        lambda one, z, c: one.where(z <= 0, 0 * one.ones_like(z), z),
        lambda one, z, c: one.where(z > 0, one.ones_like(z), 0 * one.ones_like(z)),
    ),
    "leaky_relu": (
        lambda one, z, c: one.where(z > 0, z, c * z),
        lambda one, z, c: one.where(z > 0, one.ones_like(z), c * one.ones_like(z)),
    ),
    "silu": (lambda one, z, c: z * _sigmoid(z), _slope_of_silu),
    "gelu": (lambda one, z, c: z * _normal(z), _slope_of_gelu),
    "relu6": (
        lambda one, z, c: one.where(z <= 0, 0 * one.ones_like(z), one.where(z >= 6, 6 * one.ones_like(z), z)),
        lambda one, z, c: one.where((z <= 0) | (z >= 6), 0 * one.ones_like(z), one.ones_like(z)),
    ),
    "hardsigmoid": (
        lambda one, z, c: one.where(z <= -3, 0 * one.ones_like(z), one.where(z >= 3, one.ones_like(z), (z + 3) / 6)),
        lambda one, z, c: one.where((z > -3) & (z < 3), one.ones_like(z) / 6, 0 * one.ones_like(z)),
    ),
    "hardswish": (
        lambda one, z, c: one.where(z <= -3, 0 * one.ones_like(z), one.where(z >= 3, z, z * ((z + 3) / 6))),
        lambda one, z, c: one.where(
            z <= -3, 0 * one.ones_like(z), one.where(z >= 3, one.ones_like(z), z / 3 + 0.5)
        ),
    ),
    "elu": (
        lambda one, z, c: one.where(z > 0, z, c * one.expm1(z.clip(max=0))),
        lambda one, z, c: one.where(z > 0, one.ones_like(z), c * one.exp(z.clip(max=0))),
    ),
    "tlu": (
        lambda one, z, c: one.where(z <= c, c * one.ones_like(z), z),
        lambda one, z, c: one.where(z <= c, 0 * one.ones_like(z), one.ones_like(z)),
    ),
    "mish": (_mish, _slope_of_mish),
    "quick_gelu": (lambda one, z, c: z * _sigmoid(_QUICK * z), _slope_of_quick_gelu),
}  # fmt: skip
NAMES = tuple(_FORMULAS)
