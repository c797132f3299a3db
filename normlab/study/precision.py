"""In which precision a network computes while it trains: float32, or bfloat16 where that loses nothing (autocast).

With "bf16", convolutions and matrix products take and answer bfloat16; weights, their gradients, the optimizer, the
loss and what norms compute with inside stay float32 or finer. Evaluation is always in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers import Norm


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The block in which a network computes in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def prepare(model: nn.Module, precision: str, device: torch.device) -> torch.dtype:
    """Make a model ready for that block; answers what its norms will get.

    On a CPU our norms' inputs are widened first: the compiled kernels take bfloat16 too, and are slower on it than on
    float32 with the conversion. Raises UsageError if the device has no arithmetic for bfloat16.
    """
    if precision == "float32":
        return torch.float32
    if not _has_bf16(device):
        raise UsageError(
            f"precision 'bf16': {device} has no arithmetic for bfloat16 (on a CPU that is AVX-512 or AMX); "
            "use --precision float32"
        )
    if device.type != "cpu":
        return torch.bfloat16
    for module in model.modules():
        if isinstance(module, Norm):
            module.register_forward_pre_hook(_widen)
    return torch.float32


def _widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in inputs)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
