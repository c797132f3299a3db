"""A norm of the family over some of the positions: padded sequences, ragged batches.

The moments of a plane are those of the elements that the mask keeps, and where planes are pooled each counts by how
many it has. What is pooled is the norm's own grid function. The output is zero where the mask is, so that padding stays
padding. Computed in torch's operations, which are differentiated as any.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normlab.kernels import activations
from normlab.kernels.reference.planes import wide
from normlab.layers.call import Call
from normlab.norms.application import Application
from normlab.norms.grid import update_running


def normalize(x: Tensor, residual: Tensor | None, mask: Tensor, call: Call) -> Tensor:
    """y = act(norm(x) + residual) where the mask is true, and 0 elsewhere; x (N, C, *), mask (N, *) or (N, 1, *)."""
    n, channels = x.shape[:2]
    kept = _as_planes(x, mask)
    planes = x.reshape(n, channels, kept.shape[2])
    planes = torch.where(kept, planes.float() if planes.element_size() < 4 else planes, 0.0)
    count = wide(kept.sum(2)).expand(n, channels)

    def measure() -> tuple[Tensor, Tensor]:
        divisor = count.clamp(min=1)
        mean = wide(planes).sum(2) / divisor
        centred = torch.where(kept, wide(planes) - mean[:, :, None], 0.0)
        return mean, centred.square().sum(2) / divisor

    rows = {name: wide(v).reshape(1, -1) for name, v in call.params.items()}
    fixed = None if call.running is None else (wide(call.running[0])[None], wide(call.running[1])[None])
    applied = Application(call.recipe, measure, (n, channels), count, rows, fixed, call.eps)
    scale, center, shift = (
        _broadcast_value(v, count) for v in (applied.map.scale, applied.map.center, applied.map.shift)
    )
    z = (scale * (wide(planes) - center) + shift).to(planes.dtype).reshape(x.shape)
    if residual is not None:
        z = z + residual
    z = z if call.act is None else activations.apply(call.act, z)
    y = torch.where(kept.reshape(n, 1, *x.shape[2:]), z, 0.0).to(x.dtype)
    if call.update is not None and applied.moments.batch is not None:
        mean, var, momentum, seen = call.update
        if momentum is None:
            momentum = 0.0 if seen is None else 1 / int(seen)
        with torch.no_grad():
            update_running((mean, var), applied.moments.batch, momentum)
    return y


def _as_planes(x: Tensor, mask: Tensor) -> Tensor:
    """The mask as booleans (N, 1, S)."""
    return mask.to(device=x.device, dtype=torch.bool).reshape(len(x), 1, math.prod(x.shape[2:]))


def _broadcast_value(value: object, like: Tensor) -> Tensor:
    """A value of a map as numbers (N, C, 1)."""
    found = getattr(value, "value", value)
    if not isinstance(found, Tensor):
        found = torch.tensor(found, dtype=like.dtype, device=like.device)
    return found.expand(like.shape)[:, :, None]
