"""Small tensors from the host to where they are used, without waiting for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on a device.

    A copy from ordinary memory to a GPU waits until the GPU has done everything before it; one from pinned memory
    takes its place in the queue.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
