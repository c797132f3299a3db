"""Batches of images as loops over a data loader get them: alone, beside labels, or named in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from normlab.errors import UsageError

Images = Tensor | Iterable[Any]
_NAMES = ("image", "img", "pixel_values", "x")  # of images in a dictionary


def batches(images: Images, argument: str) -> Iterator[Tensor]:
    """The batches of images, without what lies beside them.

    Raises UsageError, which begins with the `argument`, for one that holds none.
    """
    for part in [images] if isinstance(images, Tensor) else images:
        first = part[0] if isinstance(part, tuple | list) and part else part
        if isinstance(first, dict):
            first = next((first[name] for name in _NAMES if name in first), first)
        if not isinstance(first, Tensor) or first.dim() < 2:
            found = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            raise UsageError(
                f"{argument} has {found}; expected a tensor of images (N, C, H, W) as the model takes them, or batches "
                f"of them, with labels or not; in a dictionary they are called one of: {', '.join(_NAMES)}"
            )
        yield first
