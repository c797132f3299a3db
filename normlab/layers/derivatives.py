"""The norms in torch's own operations: for derivatives of any order, and for the transforms of `torch.func`.

The layers' gradient is written by hand, so it is the end of what autograd can follow. Where more is asked for (a
gradient penalty, a Hessian, gradients per sample, forward mode), this takes the place of the kernels. It applies the
same grid functions in the same precision, about a value near each plane's mean; it is slower, and keeps what autograd
keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from normlab.kernels import activations
from normlab.kernels.activations import Activation
from normlab.kernels.reference.planes import as_grid, wide
from normlab.norms.application import Application, Recipe


def normalize(
    recipe: Recipe,
    x: Tensor,
    params: Mapping[str, Tensor],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    act: Activation | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Application | None]:
    """y = act(norm(x) + residual), of x's shape, dtype and memory order, and what was applied: nothing to no elements.

    x (N, C, *) is computed with in its own dtype, or in float32 if that is narrower; the grid is float64.
    """
    planes = _widen_halves(x) if x.dim() > 2 else _widen_halves(x).unsqueeze(2)
    applied = None
    if x.numel():
        positions = tuple(range(2, planes.dim()))
        near = planes.detach().mean(positions)
        planes = planes - _broadcast_grid(near, planes)
        applied = _apply(recipe, planes, near, params, running, eps)
        # scale * (x - center) + shift, from x - near
        scale, center, shift = (as_grid(v, near) for v in (applied.map.scale, applied.map.center, applied.map.shift))
        planes = _broadcast_grid(scale, planes) * (
            planes - _broadcast_grid(center - wide(near), planes)
        ) + _broadcast_grid(shift, planes)
    z = planes.reshape(x.shape)
    if residual is not None:
        z = z + _widen_halves(residual)
    y = (z if act is None else activations.apply(act, z)).to(x.dtype)
    return (y if y.movedim(1, -1).is_contiguous() else y.contiguous()), applied


def normalize_positions(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, centred: bool
) -> Tensor:
    """The norm of `position_operators.normalize`: of `size` elements at the end of x, or of its channels."""
    if not size:
        last = normalize_positions(x.movedim(1, -1), weight, bias, x.shape[1], eps, centred)
        return last.movedim(-1, 1)
    rows = _widen_halves(x).reshape(x.numel() // size, size)
    weight, bias = (None if p is None else p.reshape(size).to(rows.dtype) for p in (weight, bias))
    if centred:
        rows = functional.layer_norm(rows, (size,), weight, bias, eps)
    else:
        rows = functional.rms_norm(rows, (size,), weight, eps)
    return rows.reshape(x.shape).to(x.dtype)


def gradients(y: Tensor, inputs: Sequence[Tensor], dy: Tensor) -> list[Tensor | None]:
    """Gradients of sum(dy * y), themselves differentiable where a graph is wanted; None for what needs none."""
    needed = [v for v in inputs if v.requires_grad]
    found = iter(
        torch.autograd.grad(y, needed, dy, create_graph=torch.is_grad_enabled(), materialize_grads=True)
        if needed
        else ()
    )
    return [next(found) if v.requires_grad else None for v in inputs]


def views(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors at the beginning of a graph of their own, so that `gradients` does not go beyond them."""
    return [v.view_as(v) for v in tensors]


def _apply(
    recipe: Recipe,
    planes: Tensor,
    near: Tensor,
    params: Mapping[str, Tensor],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Application:
    positions = tuple(range(2, planes.dim()))

    def measure() -> tuple[Tensor, Tensor]:
        offset = planes.mean(positions)
        return wide(near) + wide(offset), wide((planes - _broadcast_grid(offset, planes)).square().mean(positions))

    rows = {name: wide(v).reshape(1, -1) for name, v in params.items()}
    fixed = None if running is None else (wide(running[0]).reshape(1, -1), wide(running[1]).reshape(1, -1))
    n, channels, *size = planes.shape
    return Application(recipe, measure, (n, channels), math.prod(size), rows, fixed, eps)


def _broadcast_grid(grid: Tensor, planes: Tensor) -> Tensor:
    """A grid, to broadcast with the planes' elements."""
    return grid.to(planes.dtype).reshape(*grid.shape, *[1] * (planes.dim() - 2))


def _widen_halves(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
