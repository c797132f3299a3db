"""How a network that starts from pretrained weights is trained: its new classifier alone first, then all of it."""

from __future__ import annotations

import math

from torch import nn

from normlab.models.weights import head_of
from normlab.study.axes import Cell

HEAD_SHARE = 0.2  # of the epochs, in which the classifier learns alone


def head_epochs(cell: Cell) -> int:
    """In how many epochs the classifier learns alone: a fifth of those of fine-tuning, rounded down, at least one."""
    if cell.recipe != "finetune" or cell.epochs < 2:
        return 0
    return max(1, math.floor(HEAD_SHARE * cell.epochs))


def body_of(model: nn.Module, num_classes: int) -> list[nn.Parameter]:
    """The parameters of everything but the classifier; none where no layer can be the classifier."""
    head = head_of(model, num_classes)
    if head is None:
        return []
    own = {id(p) for p in model.get_submodule(head).parameters()}
    return [p for p in model.parameters() if id(p) not in own]
