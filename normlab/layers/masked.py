"""A norm of the family over some of the positions: padded sequences, ragged batches.

The moments of a plane are those of the elements that the mask keeps, and where planes are pooled each counts by how
many it has. What is pooled is the norm's own grid function. The output is zero where the mask is, so that padding stays
padding. Computed in torch's operations, which are differentiated as any; `pull_back` is the same derivative by hand,
for whoever cannot follow them (`normlab.layers.masked_operators`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normlab.errors import InputError
from normlab.kernels import activations
from normlab.kernels.layout import allocated
from normlab.kernels.reference.planes import affine, as_grid, combine, dots, wide
from normlab.layers import checks, operators
from normlab.layers.call import Call
from normlab.norms.application import Application
from normlab.norms.grid import update_running


def normalize(x: Tensor, residual: Tensor | None, mask: Tensor, call: Call) -> Tensor:
    """y = act(norm(x) + residual) where the mask is true, and 0 elsewhere; x (N, C, *), mask (N, *) or (N, 1, *)."""
    _see_memory_of(x, residual)
    kept, planes = _masked_planes(x, mask)
    applied = _apply(planes, kept, call)
    z = affine(planes, *_map(applied, planes)).to(planes.dtype).reshape(x.shape)
    if residual is not None:
        z = z + residual
    z = z if call.act is None else activations.apply(call.act, z)
    y = dense_as(x, torch.where(kept.reshape(len(x), 1, *x.shape[2:]), z, 0.0).to(x.dtype))
    _update(applied, call)
    return y


def pull_back(dy: Tensor, x: Tensor, residual: Tensor | None, mask: Tensor, call: Call) -> list[Tensor]:
    """Gradients of sum(dy * y), of x, of the residual if there is one, and of each parameter."""
    _see_memory_of(dy, x, residual, mask)
    kept, planes = _masked_planes(x, mask)
    applied = _apply(planes, kept, call)
    scale, center, shift = _map(applied, planes)
    g = wide(dy.reshape(planes.shape))
    if call.act is not None:
        z = affine(planes, scale, center, shift)
        z = z if residual is None else z + wide(residual.reshape(planes.shape))
        g = g * activations.derivative(call.act, z)
    g = torch.where(kept, g, 0.0)
    b, c, by_name = applied.pull(scale, center, *dots(g, planes, center))
    dx = scale[:, :, None] * g if b is None else combine(g, planes, center, scale, b, c)
    found = [torch.where(kept, dx, 0.0), *([] if residual is None else [g])]
    learned = [_like_parameter(grad, v) for grad, v in zip(by_name.values(), call.params.values(), strict=True)]
    return [*(dense_as(x, v.reshape(x.shape).to(x.dtype)) for v in found), *learned]


def dense_as(x: Tensor, v: Tensor) -> Tensor:
    """v in the memory order of x, channels-first where x is dense in neither; `vmap` lets nothing else be asked."""
    if x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return v.contiguous()
    return v.movedim(1, -1).contiguous().movedim(-1, 1)


def check(mask: Tensor, refusal: str) -> None:
    """Raise InputError for other numbers than 0 and 1, or with the words of `refusal`, if any, where one is kept.

    A mask that `vmap` maps over cannot be read, and is taken as it is.
    """
    _see_memory_of(mask)
    try:
        checks.zeros_and_ones(mask)
        if refusal:
            checks.more_than_one_kept(refusal, mask)
    except RuntimeError as error:
        if isinstance(error, InputError) or not operators.is_transformed():
            raise


def keeps_any(mask: Tensor) -> bool:
    """Whether a batch was seen at all, by which running statistics move."""
    with operators.moving_statistics():
        return bool(mask.any())


def _see_memory_of(*tensors: Tensor | None) -> None:
    """Raise RuntimeError if one of them was freed: torch's operations would read at the address null."""
    if not (torch.compiler.is_compiling() or operators.is_transformed()):
        for v in tensors:
            if v is not None:
                allocated(v)


def _masked_planes(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask as booleans (N, 1, S), and x as planes (N, C, S) with zeros where it is false."""
    kept = mask.to(device=x.device, dtype=torch.bool).reshape(len(x), 1, math.prod(x.shape[2:]))
    planes = x.reshape(*x.shape[:2], kept.shape[2])
    return kept, torch.where(kept, planes.float() if planes.element_size() < 4 else planes, 0.0)


def _apply(planes: Tensor, kept: Tensor, call: Call) -> Application:
    n, channels, _ = planes.shape
    count = wide(kept.sum(2)).expand(n, channels)

    def measure() -> tuple[Tensor, Tensor]:
        divisor = count.clamp(min=1)
        mean = wide(planes).sum(2) / divisor
        centred = torch.where(kept, wide(planes) - mean[:, :, None], 0.0)
        return mean, centred.square().sum(2) / divisor

    rows = {name: wide(v).reshape(1, -1) for name, v in call.params.items()}
    fixed = None if call.running is None else (wide(call.running[0])[None], wide(call.running[1])[None])
    return Application(call.recipe, measure, (n, channels), count, rows, fixed, call.eps)


def _update(applied: Application, call: Call) -> None:
    """Move the running statistics, if any are to be, by the batch's or by those that its instances have on average."""
    if call.update is None:
        return
    mean, var, momentum, seen = call.update
    averaged = call.recipe.entry.in_evaluation is not None
    with operators.moving_statistics():
        if momentum is None:
            momentum = 0.0 if seen is None else 1 / int(seen)
        found = _average(applied) if averaged else applied.moments.batch
        if found is not None:
            update_running((mean, var), found, momentum, unbiased=not averaged)


def _average(applied: Application) -> tuple[Tensor, Tensor, int]:
    """Mean and unbiased variance of each channel, averaged over the instances that have elements, as one value.

    As without a mask, an instance of one element counts with a variance of zero.
    """
    mean, var = (v.value for v in applied.measured)  # both are zero where there are no elements
    count = applied.size
    unbiased = var * (count / (count - 1).clamp(min=1))
    instances = (count > 0).sum(0)
    return mean.sum(0) / instances, unbiased.sum(0) / instances, 1


def _like_parameter(grad: Tensor | None, v: Tensor) -> Tensor:
    """The gradient of a parameter, in memory of its own: a cotangent may be a view, or that of two parameters."""
    return torch.zeros_like(v) if grad is None else (torch.zeros_like(wide(v)) + grad.reshape(-1)).to(v.dtype)


def _map(applied: Application, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, center, shift = (as_grid(v, planes) for v in (applied.map.scale, applied.map.center, applied.map.shift))
    return scale, center, shift
