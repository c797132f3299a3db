"""The images of a split, as the batches that training asks for, on the device that trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normlab.data import Split, send

_SHARE = 0.25  # of a GPU's free memory that one split may take


class Feed:
    """Images, uint8 (N, C, H, W), and labels (N,) of a split on a device, gathered by index.

    `resident` keeps the whole split there, so that a batch is gathered where it is used; without it a batch is read
    from the split, which is often a file, and sent. By default a split stays on a GPU that has room for it.
    """

    def __init__(self, split: Split, device: torch.device, *, resident: bool | None = None) -> None:
        self._split, self._device = split, device
        self.resident = _fits(split, device) if resident is None else resident
        if self.resident:
            self._images, self._labels = (torch.tensor(of, device=device) for of in (split.images, split.labels))

    def __getitem__(self, which: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Copies of the images and labels at these places, an integer array or a slice."""
        if self.resident:
            there = which if isinstance(which, slice) else send(torch.from_numpy(which), self._device)
            return self._images[there], self._labels[there]
        # an array of places copies by itself; a slice is a view of arrays that are read-only
        copy = isinstance(which, slice)
        images, labels = (np.array(of[which], copy=copy or None) for of in (self._split.images, self._split.labels))
        return send(torch.from_numpy(images), self._device), send(torch.from_numpy(labels), self._device)


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.nbytes < _SHARE * free
