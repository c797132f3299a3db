"""What Numba's kernels serve: CPU tensors and NumPy arrays; they are compiled when they are first called."""

from __future__ import annotations

from typing import Any

from normlab.kernels.contract import DTYPES, Reason
from normlab.norms.family import NormEntry


def serves(x: Any, entry: NormEntry | None) -> Reason | None:
    """Why Numba's kernels do not take x, or None."""
    device, name = str(getattr(x, "device", "cpu")), str(x.dtype).removeprefix("torch.")
    if not device.startswith("cpu"):
        return Reason(f"a tensor on device {device!r}")
    return None if name in DTYPES else Reason(f"dtype {name}")
