"""In which precision a network computes while it trains: float32, or bfloat16 where that loses nothing (autocast).

With "bf16", convolutions and matrix products take and return bfloat16, and so do norms; weights, their gradients, the
optimizer, the loss and what norms compute with inside stay float32 or finer. Evaluation is always in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from normlab.errors import UsageError
from normlab.layers._torch import cpu_has_bf16


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The block in which a network computes in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check(precision: str, device: torch.device) -> torch.dtype:
    """What norms will get in that block; raises UsageError if the device has no arithmetic for it."""
    if precision == "float32":
        return torch.float32
    if not _has_bf16(device):
        raise UsageError(
            f"precision 'bf16': {device} has no arithmetic for bfloat16 (on a CPU that is AVX-512 or AMX); "
            "use --precision float32"
        )
    return torch.bfloat16


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(cpu_has_bf16())
