"""Statistics per position as torch sees them: an `autograd.Function`, and two custom operators (`normlab.operators`).

    normlab::normalize_positions(x, weight, bias, size, eps, centred) -> (y, kept)
    normlab::normalize_positions_backward(dy, x, weight, kept, ...) -> [dx, d weight, d bias]

`size` is how many elements at the end of x are normalized together; 0 stands for the channels, dimension 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from normlab import positions
from normlab.operators import TWICE, seen_through


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool) -> Tensor:
    """y = weight * h + bias (`normlab.positions`), differentiable; contiguous."""
    if seen_through(x):
        y: Tensor = OPERATOR(x, weight, bias, size, eps, centred)[0]
    else:
        y = Normalize.apply(x, weight, bias, size, eps, centred)
    return y


class Normalize(torch.autograd.Function):
    """Normalization as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
    ) -> Tensor:
        arranged = _arrange(x, size)
        y, ctx.cache = positions.forward(arranged, weight, bias, eps=eps, centred=centred)
        # x (or its copy) travels as a saved tensor: a change in place is noticed, and checkpointing can drop it
        ctx.save_for_backward(x if arranged.data_ptr() == x.data_ptr() else arranged, weight)
        ctx.size, ctx.bias = size, _form(bias)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; a second derivative of zero would be silent and wrong
            raise RuntimeError(TWICE)
        x, weight = ctx.saved_tensors
        learns = ctx.needs_input_grad[1:3]
        g, x = _arrange(dy, ctx.size), _arrange(x, ctx.size)
        dx, d_weight, d_bias = positions.backward(g, x, weight, ctx.cache, learns)
        return dx.view(dy.shape), _formed(d_weight, _form(weight)), _formed(d_bias, ctx.bias), None, None, None


def _arrange(x: Tensor, size: int) -> Tensor:
    """x as (R, D), its last elements a row, or as (N, C, S); a view where its memory allows."""
    if size:
        arranged = x.reshape(x.numel() // size, size)
    else:
        arranged = x.flatten(2) if x.dim() > 2 else x
        if arranged.dim() == 3 and arranged.shape[2] == 1:
            arranged = arranged[:, :, 0]
    return arranged if arranged.stride(-1) == 1 or arranged.shape[-1] == 1 else arranged.contiguous()


def _form(parameter: Tensor | None) -> tuple[Any, Any] | None:
    return None if parameter is None else (parameter.shape, parameter.dtype)


def _formed(gradient: Tensor | None, form: tuple[Any, Any] | None) -> Tensor | None:
    """A flat gradient in the parameter's shape and dtype."""
    return gradient if gradient is None or form is None else gradient.view(form[0]).to(form[1])


# --- the operators ---------------------------------------------------------------------------------------------------


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    y, cache = positions.forward(_arrange(x, size), weight, bias, eps=eps, centred=centred)
    kept = _kept(x, size) if cache.saved is None else torch.as_tensor(cache.saved.kept).reshape(-1)
    return y.view(x.shape), kept


def _shapes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _kept(x, size)


def _normalize_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, kept: Tensor, size: int, centred: bool, learns: list[bool]
) -> list[Tensor]:
    arranged = _arrange(x, size)
    cache = positions.restored(arranged, kept, centred)
    dx, d_weight, d_bias = positions.backward(_arrange(dy, size), arranged, weight, cache, (learns[0], learns[1]))
    return [dx.view(x.shape), *(v for v in (d_weight, d_bias) if v is not None)]


def _shapes_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, kept: Tensor, size: int, centred: bool, learns: list[bool]
) -> list[Tensor]:
    dtype = positions.numbers(x)[1]
    parameters = [x.new_empty(size or x.shape[1], dtype=dtype) for wanted in learns if wanted]
    return [x.new_empty(x.shape), *parameters]


def _kept(x: Tensor, size: int) -> Tensor:
    """As much memory as the backend keeps for the backward pass."""
    each, _, dtype = positions.numbers(x)
    return x.new_empty(each * (x.numel() // size if size else x.numel() // x.shape[1]), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, size, _, centred = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])
    ctx.size, ctx.centred, ctx.forms = size, centred, (_form(weight), _form(bias))


def _pull_back(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
    x, weight, kept = ctx.saved_tensors
    learns = [form is not None for form in ctx.forms]
    dx, *found = OPERATOR_BACKWARD(dy, x, weight, kept, ctx.size, ctx.centred, learns)
    gradients = [_formed(found.pop(0), form) if form is not None else None for form in ctx.forms]
    return (dx, *gradients, None, None, None)


OPERATOR: Any = library.custom_op("normlab::normalize_positions", _normalize, mutates_args=())
OPERATOR.register_fake(_shapes)
OPERATOR_BACKWARD: Any = library.custom_op(
    "normlab::normalize_positions_backward", _normalize_backward, mutates_args=()
)
OPERATOR_BACKWARD.register_fake(_shapes_backward)
OPERATOR.register_autograd(_pull_back, setup_context=_save)
