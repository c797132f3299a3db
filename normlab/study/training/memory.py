"""The most memory that a training held: of the GPU's allocator, or of the process on Linux."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement on `device`."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # forget the peak of the resident set (Linux, proc(5))


def peak_bytes(device: torch.device) -> int | None:
    """The peak since `reset_peak`: tensors on a GPU, else the whole process; None where nobody counts."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
