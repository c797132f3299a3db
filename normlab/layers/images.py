"""What a model is run on by those who treat it: an example, or batches of images as a data loader gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normlab.errors import UsageError

Images = Tensor | Iterable[Any]
_NAMES = ("image", "img", "pixel_values", "x")  # of images in a dictionary
_EXPECTED = (
    "expected a tensor of images (N, C, H, W) as the model takes them, or batches of them, with labels or not; in a "
    f"dictionary they are called one of: {', '.join(_NAMES)}"
)


@contextmanager
def given_to(model: nn.Module, title: str, what: str) -> Iterator[None]:
    """Raise UsageError for whatever the model raises, run on what it does not take; but for a lack of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(f"{title}: {type(model).__name__} does not take {what} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """What went wrong: the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def batches(images: Images, argument: str) -> Iterator[Tensor]:
    """The batches of images, alone, beside labels or named in a dictionary, without what lies beside them.

    Raises UsageError, which begins with the `argument`, for what holds none.
    """
    if not isinstance(images, Iterable):
        raise UsageError(f"{argument} is {type(images).__name__}; {_EXPECTED}")
    for part in [images] if isinstance(images, Tensor) else images:
        first = part[0] if isinstance(part, tuple | list) and part else part
        if isinstance(first, dict):
            first = next((first[name] for name in _NAMES if name in first), first)
        if not isinstance(first, Tensor) or first.dim() < 2:
            found = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            raise UsageError(f"{argument} has {found}; {_EXPECTED}")
        yield first
