"""What a norm is: a grid function over moments, its registry entry, and the program it is traced into.

Nothing here imports torch: a grid function is written once and applied to NumPy arrays, torch tensors and symbols.
"""

from __future__ import annotations

from normlab.norms import members as _members  # noqa: F401  (registers them)
from normlab.norms import modules as _modules  # noqa: F401
from normlab.norms.family import (
    AFFINE,
    Learned,
    NormEntry,
    default_groups,
    describe,
    norm_names,
    parse,
    register_norm,
    resolve_options,
    weights_of,
)
from normlab.norms.grid import (
    Affine,
    Moments,
    average,
    exp,
    maximum,
    minimum,
    rsqrt,
    sqrt,
    standardize,
    stop_gradient,
)

__all__ = [
    "AFFINE",
    "Affine",
    "Learned",
    "Moments",
    "NormEntry",
    "average",
    "default_groups",
    "describe",
    "exp",
    "maximum",
    "minimum",
    "norm_names",
    "parse",
    "register_norm",
    "resolve_options",
    "rsqrt",
    "sqrt",
    "standardize",
    "stop_gradient",
    "weights_of",
]
