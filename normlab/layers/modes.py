"""Training and evaluation for a while, and every part's own mode back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode throughout; afterwards every part is in its own again, left the model or not.

    Nobody's `train` is called: what a part does when its mode changes is left undone, for it changes back.
    """
    modes = {part: part.training for part in model.modules()}
    for part in modes:
        part.training = training
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
