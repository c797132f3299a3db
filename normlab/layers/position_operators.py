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
from normlab.kernels.layout import allocated, as_stored
from normlab.kernels.registry import differentiable_positions_for
from normlab.layers import _torch, checks
from normlab.layers import derivatives as differentiable
from normlab.layers.operators import (
    as_kept,
    as_tensor,
    check_unpacked,
    is_followed,
    is_transformed,
    seen_through,
    untraced,
)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool, last: bool = False
) -> Tensor:
    """y = weight * h + bias (`normlab.kernels.positions`), differentiable.

    With `last` the channels are normalized of x (N, C, *) that has them last in memory, and so has y; else y is
    contiguous.
    """
    followed = is_transformed()
    looked_at = seen_through(x) or type(weight) not in _PLAIN_OR_NONE or type(bias) not in _PLAIN_OR_NONE
    if not (followed or looked_at):
        if torch.is_inference_mode_enabled() and torch.is_grad_enabled():  # see `normlab.layers.operators.normalize`
            with torch.no_grad():
                return normalize(x, weight, bias, size, eps, centred, last)
        y = _run_by_backend(x, weight, bias, size, eps, centred, last)
        if y is not None:
            return y
    given, size = (x.movedim(1, -1), x.shape[1]) if last else (x, size)
    if followed:
        y = differentiable.normalize_positions(given, weight, bias, size, eps, centred)
    elif looked_at:
        y = OPERATOR(given, weight, bias, size, eps, centred)[0]
    else:
        y = _apply(given, weight, bias, size, eps, centred)
    return y.movedim(-1, 1) if last else y


def _run_by_backend(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool, last: bool
) -> Tensor | None:
    """The output as a backend makes it that has its own place in autograd's graph, or None."""
    by_backend = differentiable_positions_for(x)
    if by_backend is None or x.numel() == 0:
        return None
    y: Tensor | None = by_backend(x, weight, bias, size, eps, centred, last, _pull_back_from_saved)
    return y


_PLAIN_OR_NONE = (*checks.PLAIN, type(None))


def _pull_back_from_saved(
    backend: Any,
    how: tuple[int, bool, bool],
    eps: float,
    learns: tuple[bool, bool],
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
) -> list[Tensor | None]:
    """Gradients of x, weight and bias, from what a forward pass has saved."""
    size, centred, last = how
    check_unpacked(x, dy)
    if last:
        dy, x, size = dy.movedim(1, -1), x.movedim(1, -1), x.shape[1]
    if is_followed(dy):
        dx, *gradients = _pull_back_in_torch(dy, x, weight, bias, size, eps, centred)
    else:
        arranged = _arrange(x, size)
        cache = positions.Cache(backend, backend.parameter_dtype(x), backend.restored(arranged, kept, centred))
        dx, *gradients = _pull_back(_arrange(dy, size), arranged, weight, bias, cache, learns, dy.shape)
    return [dx.movedim(-1, 1) if last and dx is not None else dx, *gradients]


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
    @untraced
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kept = ctx.saved_tensors
        check_unpacked(x, dy)
        if is_followed(dy):
            return *_pull_back_in_torch(dy, x, weight, bias, *ctx.how), None, None, None
        learns, (size, _, centred), cache = ctx.needs_input_grad[1:3], ctx.how, ctx.cache
        g, x = _arrange(dy, size), _arrange(x, size)
        if kept is not None and kept.data_ptr() != ctx.kept.data_ptr():  # computed again, or brought back
            kept = as_kept(kept, ctx.kept)
            cache = positions.Cache(cache.backend, cache.dtype, cache.backend.restored(x, kept, centred))
        return *_pull_back(g, x, weight, bias, cache, learns, dy.shape), None, None, None


def _pull_back(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cache: positions.Cache,
    learns: tuple[bool, bool],
    shape: torch.Size,
) -> list[Tensor | None]:
    """Gradients of x, in this shape, and of weight and bias, from arranged tensors."""
    dx, d_weight, d_bias = positions.backward(g, x, weight, cache, learns)
    return [
        dx if dx.shape == shape else dx.view(shape),
        _like_parameter(d_weight, weight),
        _like_parameter(d_bias, bias),
    ]


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
    if not x.is_contiguous():
        x = allocated(x)
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
    kept = _allocate_saved(x, size) if cache.saved is None else as_tensor(cache.saved.kept).reshape(-1)
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


def _pull_back_operator(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
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
OPERATOR.register_autograd(_pull_back_operator, setup_context=_save)
