"""What Triton's kernels serve: CUDA tensors."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from normlab.kernels.contract import DTYPES, Reason
from normlab.norms.family import NormEntry


def serves(x: Any, entry: NormEntry | None) -> Reason | None:
    """Why Triton's kernels do not take x, or None; CPU tensors are for Triton's interpreter."""
    device, name = x.device, str(x.dtype).removeprefix("torch.")
    if isinstance(device, str):
        return Reason("a NumPy array", "use 'numba_cpu' or 'reference'")
    if name not in DTYPES:
        return Reason(f"dtype {name} on device {str(device)!r}", f"expected one of: {', '.join(DTYPES)}")
    missing = triton_missing()
    if missing is not None:
        return Reason(f"a tensor on device {str(device)!r} ({missing})", "install triton, or use 'reference'")
    if device.type == "cuda" or (device.type == "cpu" and _is_interpreted()):
        return None
    return Reason(
        f"a tensor on device {str(device)!r}",
        "move it to a CUDA device, or set TRITON_INTERPRET=1 in the environment before Python starts, which runs the "
        "kernels on CPU tensors, slowly",
    )


@cache
def triton_missing() -> str | None:
    """Why triton cannot be used here, or None."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return "triton is not installed" if absent else f"triton cannot be imported ({error})"
    return None


def _is_interpreted() -> bool:
    return bool(import_module("normlab.kernels.gpu.planes").INTERPRETED)
