"""What array arithmetic serves: everything."""

from __future__ import annotations

from typing import Any

from normlab.kernels.contract import Reason
from normlab.norms.family import NormEntry


def serves(x: Any, entry: NormEntry | None) -> Reason | None:
    """None: array arithmetic takes every floating dtype on every device."""
    return None
