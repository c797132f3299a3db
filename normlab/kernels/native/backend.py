"""What the kernels called from C++ serve: CPU tensors, where the C++ part has been built (`normlab build`)."""

from __future__ import annotations

import sys
from typing import Any

from normlab.kernels.contract import Reason
from normlab.kernels.cpu.backend import serves as kernels_serve
from normlab.norms.family import NormEntry


def serves(x: Any, entry: NormEntry | None) -> Reason | None:
    """Why the kernels are not called from C++ for x, or None."""
    torch = sys.modules.get("torch")
    reason = kernels_serve(x, entry)
    if reason is not None:
        return reason
    if torch is None or not isinstance(x.dtype, torch.dtype):
        return Reason("a NumPy array", "use 'numba_cpu' or 'reference'")
    from normlab.kernels.native import building

    if building.built() is None:
        return Reason("anything before its C++ part is built", "run `normlab build`, or use 'numba_cpu'")
    try:
        building.extension()
    except ImportError as error:
        return Reason(f"anything, as its C++ part does not load ({error})", "use 'numba_cpu'")
    return None
