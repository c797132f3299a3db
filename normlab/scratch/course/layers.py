"""`normlab.scratch.layers`; only dropout seeds NumPy's global generator, as the assignments have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.scratch import layers
from normlab.scratch.layers import *  # noqa: F403
from normlab.scratch.layers import __all__ as __all__


def dropout_forward(  # type: ignore[no-redef]
    x: np.ndarray, dropout_param: Mapping[str, Any]
) -> tuple[np.ndarray, Any]:
    """`normlab.scratch.layers.dropout_forward`; a seed seeds NumPy's global generator before the mask is drawn."""
    param = dict(dropout_param)
    seed = param.pop("seed", None)
    if seed is not None:
        np.random.seed(seed)  # noqa: NPY002 - what follows in a notebook depends on it
    return layers.dropout_forward(x, param)
