"""Gradients of a tensor that is handed a gradient, without what torch imports for the same.

`torch.autograd.grad` with `grad_outputs` imports SymPy, which takes as long as the checks of a layer do. A scalar
whose own backward pass is the handing over needs no such argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class _Handed(torch.autograd.Function):
    """A scalar with the gradient `dy` in y: `dy` itself, strides and all."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        ctx.dy = dy
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.dy, None


def gradients(
    y: torch.Tensor, of: Sequence[torch.Tensor], dy: torch.Tensor, create_graph: bool = False, keep_graph: bool = False
) -> tuple[torch.Tensor | None, ...]:
    """The gradients in `of` of an output `y` whose own gradient is `dy`; None for what `y` does not depend on."""
    scalar = _Handed.apply(y, dy.to(y.dtype))  # type: ignore[no-untyped-call]
    return torch.autograd.grad(
        scalar, of, create_graph=create_graph, retain_graph=keep_graph or create_graph, allow_unused=True
    )
