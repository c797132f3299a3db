"""What the kernels and who calls them have to agree on."""

from __future__ import annotations

NO_ACT, RELU, OTHER_ACT = range(3)

_EPS = 1e-20  # from which on a smaller variance counts for nothing, so that its digits do not matter
_TINY = 1e-30


def is_half(dtype: str) -> bool:
    """Whether elements of this dtype are computed with as another."""
    return dtype in ("bfloat16", "float16")


def least_variance(eps: float) -> float:
    """The variance, or sum of products, below which it is computed in float64."""
    return 0.0 if eps >= _EPS else _TINY
