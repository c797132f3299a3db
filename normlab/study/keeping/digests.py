"""The digest of tensors and of what is said about them, by which a changed byte of a file is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256, in hexadecimal, of a text and of contiguous tensors: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
