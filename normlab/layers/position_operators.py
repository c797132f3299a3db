"""Statistics per position as torch sees them: an `autograd.Function`, and two custom operators.

    normlab::normalize_positions(x, weight, bias, size, eps, centred) -> (y, kept)
    normlab::normalize_positions_backward(dy, x, weight, kept, ...) -> [dx, d weight, d bias]

`size` is how many elements at the end of x are normalized together; 0 stands for the channels, dimension 1.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, library

from normlab.kernels import positions, use_backend
from normlab.kernels.layout import as_stored
from normlab.layers import _torch, checks
from normlab.layers import derivatives as differentiable
from normlab.layers.operators import as_tensor, is_followed, is_transformed, seen_through


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool) -> Tensor:
    """y = weight * h + bias (`normlab.kernels.positions`), differentiable; contiguous."""
    if is_transformed():
        y = differentiable.normalize_positions(x, weight, bias, size, eps, centred)
    elif seen_through(x) or type(weight) not in _PLAIN_OR_NONE or type(bias) not in _PLAIN_OR_NONE:
        y = OPERATOR(x, weight, bias, size, eps, centred)[0]
    else:
        y = _apply(x, weight, bias, size, eps, centred)
    return y


_PLAIN_OR_NONE = (*checks.PLAIN, type(None))


class Normalize(torch.autograd.Function):
    """Normalization as one step that can be differentiated, and its derivative by `normlab.layers.derivatives`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
    ) -> Tensor:
        arranged = _arrange(x, size)
        y: Tensor
        y, cache = positions.forward(arranged, weight, bias, eps=eps, centred=centred)
        # all that the backward pass uses travels as saved tensors: see `normlab.layers.operators.Normalize`
        ctx.kept = None if cache.saved is None else as_tensor(cache.saved.kept)
        ctx.save_for_backward(x, weight, bias, ctx.kept)
        ctx.cache, ctx.how = cache, (size, eps, centred)
        return y.resize_(x.shape)  # not a view, which nobody could change in place

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kept = ctx.saved_tensors
        if is_followed(dy):
            return *_pull_back_in_torch(dy, x, weight, bias, *ctx.how), None, None, None
        learns, (size, _, centred), cache = ctx.needs_input_grad[1:3], ctx.how, ctx.cache
        g, x = _arrange(dy, size), _arrange(x, size)
        if kept is not None and kept.data_ptr() != ctx.kept.data_ptr():  # computed again, or brought back
            cache = positions.Cache(cache.backend, cache.dtype, cache.backend.restored(x, kept, centred))
        dx, d_weight, d_bias = positions.backward(g, x, weight, cache, learns)
        return (
            dx if dx.shape == dy.shape else dx.view(dy.shape),
            _like_parameter(d_weight, weight),
            _like_parameter(d_bias, bias),
            None,
            None,
            None,
        )


_apply: Any = _torch.apply_of(Normalize)


def _pull_back_in_torch(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> list[Tensor | None]:
    """Gradients of x, weight and bias, that have gradients themselves."""
    with torch.enable_grad():
        given = differentiable.views([v for v in (x, weight, bias) if v is not None])
        x, *rest = given
        weight, bias = (None if p is None else rest.pop(0) for p in (weight, bias))
        y = differentiable.normalize_positions(x, weight, bias, size, eps, centred)
    dx, *grads = differentiable.gradients(y, given, dy)
    return [dx, *(None if p is None else grads.pop(0) for p in (weight, bias))]


def _arrange(x: Tensor, size: int) -> Tensor:
    """x as (R, D), its last elements a row, or as (N, C, S); a view where its memory allows."""
    x = as_stored(x)
    if size:
        arranged = x if x.dim() == 2 and x.shape[1] == size else x.reshape(x.numel() // size, size)
    else:
        arranged = x.flatten(2) if x.dim() > 2 else x
        if arranged.dim() == 3 and arranged.shape[2] == 1:
            arranged = arranged[:, :, 0]
    return arranged if arranged.stride(-1) == 1 or arranged.shape[-1] == 1 else arranged.contiguous()


def _like_parameter(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """A flat gradient in the parameter's shape and dtype."""
    if gradient is None or parameter is None:
        return gradient
    if gradient.dtype is parameter.dtype and gradient.shape == parameter.shape:
        return gradient
    return gradient.view(parameter.shape).to(parameter.dtype)


# --- the operators ---------------------------------------------------------------------------------------------------


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    y, cache = positions.forward(_arrange(x, size), weight, bias, eps=eps, centred=centred)
    kept = _allocate_saved(x, size) if cache.saved is None else torch.as_tensor(cache.saved.kept).reshape(-1)
    return y.resize_(x.shape), kept


def _shapes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _allocate_saved(x, size)


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
    with use_backend("reference") if x.is_meta else nullcontext():
        dtype = positions.numbers(x)[1]
    parameters = [x.new_empty(size or x.shape[1], dtype=dtype) for wanted in learns if wanted]
    return [x.new_empty(x.shape), *parameters]


def _allocate_saved(x: Tensor, size: int) -> Tensor:
    """As much memory as the backend keeps for the backward pass."""
    with use_backend("reference") if x.is_meta else nullcontext():  # which serves anything
        each, _, dtype = positions.numbers(x)
    return x.new_empty(each * (x.numel() // size if size else x.numel() // x.shape[1]), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, *how = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.how = how


def _pull_back(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
    x, weight, bias, kept = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_pull_back_in_torch(dy, x, weight, bias, *ctx.how), None, None, None
    size, _, centred = ctx.how
    learns = [p is not None for p in (weight, bias)]
    dx, *found = OPERATOR_BACKWARD(dy, x, weight, kept, size, centred, learns)
    gradients = [None if p is None else _like_parameter(found.pop(0), p) for p in (weight, bias)]
    return (dx, *gradients, None, None, None)


OPERATOR: Any = library.custom_op("normlab::normalize_positions", _normalize, mutates_args=())
OPERATOR.register_fake(_shapes)
OPERATOR_BACKWARD: Any = library.custom_op(
    "normlab::normalize_positions_backward", _normalize_backward, mutates_args=()
)
OPERATOR_BACKWARD.register_fake(_shapes_backward)
OPERATOR.register_autograd(_pull_back, setup_context=_save)
