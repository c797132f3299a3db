"""A masked norm as torch's compiler and exporter see it: two custom operators, as `normlab.layers.operators`.

    normlab::normalize_masked(x, residual, mask, params, running, ...) -> (y, new running mean, new running variance)
    normlab::normalize_masked_backward(dy, x, residual, mask, params, running, ...) -> [dx, d residual, d params ...]

What depends on the numbers in a mask is inside: whether it may be taken, and whether a batch was seen at all. The
backward pass takes the moments again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library

from normlab.layers import derivatives as differentiable
from normlab.layers import masked
from normlab.layers.operators import call_of


def _normalize(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    seen: Tensor | None,
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
    momentum: float | None,
    refusal: str,
) -> tuple[Tensor, Tensor, Tensor]:
    masked.check(mask, refusal)
    call = call_of(params, running, norm, names, options, training, eps, act)
    fresh: Sequence[Tensor] = ()
    if running and training:
        fresh = [v.clone() for v in running]
        if mask.any():
            call.update = (fresh[0], fresh[1], momentum, seen)
    y = masked.normalize(x, residual, mask, call)
    mean, var = fresh or (x.new_empty(0), x.new_empty(0))
    return y, mean, var


def _shapes(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    seen: Tensor | None,
    norm: str,
    names: str,
    options: str,
    training: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = [torch.empty_like(v) for v in running] if running and training else (x.new_empty(0), x.new_empty(0))
    return _empty_like(x), mean, var


def _normalize_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
) -> list[Tensor]:
    call = call_of(params, running, norm, names, options, training, eps, act)
    return masked.pull_back(dy, x, residual, mask, call)


def _shapes_backward(
    dy: Tensor, x: Tensor, residual: Tensor | None, mask: Tensor, params: Sequence[Tensor], *_: Any
) -> list[Tensor]:
    return [_empty_like(x), *([] if residual is None else [_empty_like(x)]), *(torch.empty_like(v) for v in params)]


def _empty_like(x: Tensor) -> Tensor:
    return masked.dense_as(x, x.new_empty(x.shape))


def _save_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, mask, params, running, _, norm, names, options, training, eps, act, _, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    stands_in = [] if training else list(running)
    added = [] if residual is None else [residual]
    ctx.save_for_backward(x, mask, *added, *stands_in, *params)
    ctx.counts = len(added), len(stands_in), len(running)
    ctx.how = norm, names, options, training, eps, act


def _pull_back(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, mask, *rest = ctx.saved_tensors
    added, stands_in, buffers = ctx.counts
    residual = rest[0] if added else None
    running, params = rest[added : added + stands_in], rest[added + stands_in :]
    grads: list[Tensor | None]
    if torch.is_grad_enabled():
        x, *others = given = differentiable.views([x, *rest[:added], *params])
        y = masked.normalize(x, others[0] if added else None, mask, call_of(others[added:], running, *ctx.how))
        grads = differentiable.gradients(y, given, dy)
    else:
        grads = OPERATOR_BACKWARD(dy, x, residual, mask, params, running, *ctx.how)
    return (grads[0], grads[1] if added else None, None, grads[1 + added :], [None] * buffers, None, *[None] * 8)


_tags = (torch.Tag.needs_exact_strides,) if hasattr(torch.Tag, "needs_exact_strides") else ()
OPERATOR: Any = library.custom_op("normlab::normalize_masked", _normalize, mutates_args=(), tags=_tags)
OPERATOR.register_fake(_shapes)
OPERATOR_BACKWARD: Any = library.custom_op(
    "normlab::normalize_masked_backward", _normalize_backward, mutates_args=(), tags=_tags
)
OPERATOR_BACKWARD.register_fake(_shapes_backward)
OPERATOR.register_autograd(_pull_back, setup_context=_save_context)
