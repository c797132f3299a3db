"""Labelled images: readers, stratified split, a decoded cache on disk, and batched augmentation.

`load` returns a `Dataset` of memory-mapped uint8 images; importing this package does not import torch.
"""

from __future__ import annotations

from normlab.data._augment import Standardizer, augment, standardize
from normlab.data._dataset import SIXTEEN_BITS, Dataset, Split
from normlab.data._load import load
from normlab.data._memory import held
from normlab.data._pictures import as_pixels
from normlab.data._send import send

__all__ = [
    "SIXTEEN_BITS",
    "Dataset",
    "Split",
    "Standardizer",
    "as_pixels",
    "augment",
    "held",
    "load",
    "send",
    "standardize",
]
