"""normlab: a laboratory for normalization layers in deep networks.

Importing this package is cheap: torch, SciPy and Numba load with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "Affine": "normlab.grid",
    "Moments": "normlab.grid",
    "norm_names": "normlab.norms",
    "register_norm": "normlab.norms",
    "make_norm": "normlab.layers",
    "backend_for": "normlab.planes",
    "use_backend": "normlab.planes",
    "recomputed_outputs": "normlab.recomputing",
    "swap_norms": "normlab.swapping",
    "fuse_norms": "normlab.swapping",
}
_MODULES = ("layers", "norms", "grid", "planes", "stages", "models", "data", "scratch", "study", "check", "report")

__all__ = [
    "Affine",
    "Moments",
    "__version__",
    "backend_for",
    "fuse_norms",
    "make_norm",
    "norm_names",
    "recomputed_outputs",
    "register_norm",
    "swap_norms",
    "use_backend",
]

if TYPE_CHECKING:
    from normlab.grid import Affine, Moments
    from normlab.layers import make_norm
    from normlab.norms import norm_names, register_norm
    from normlab.planes import backend_for, use_backend
    from normlab.recomputing import recomputed_outputs
    from normlab.swapping import fuse_norms, swap_norms


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"normlab.{name}")
    else:
        raise AttributeError(f"module 'normlab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
