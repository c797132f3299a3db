"""One application of a norm of the family to a tensor, with everything that it depends on as an argument.

A layer holds parameters and buffers; this function holds nothing. So it serves layers that are not ours as well: those
of other libraries, whose attributes are read at each call (`normlab.layers.adapters`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlab.kernels import stages
from normlab.kernels.activations import Activation
from normlab.layers import checks, masked, masked_operators, operators, plain
from normlab.layers.call import Call


def normalize(
    norm: str,
    x: Tensor,
    params: dict[str, Tensor],
    *,
    options: tuple[tuple[str, Any], ...] = (),
    running: tuple[Tensor, Tensor] | None = None,
    use_batch: bool = True,
    update: bool = False,
    seen: Tensor | None = None,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    act: Activation | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    refusal: str = "",
    wrapped: bool = False,
) -> Tensor:
    """y = act(norm(x) + residual) for x (N, C, *) of 2 to 5 dimensions; shape, dtype and memory format as x.

    `params` has the norm's learned parameters that are applied, (C,) each. `running` (mean (C,), variance (C,))
    normalizes unless `use_batch`; with `update` it moves by the batch's own, and `seen` counts that batch. A `momentum`
    of None averages all batches seen. The second forward pass of activation checkpointing updates nothing. A `mask`
    says which positions there are (`normlab.layers.masked`); one of none updates nothing, and one of a single value is
    refused with `refusal`, if there is one. `wrapped`: a parameter or a running statistic is of a subclass of torch's
    tensors, whose memory no kernel may read.
    """
    compiling = torch.compiler.is_compiling()
    update = update and (compiling or not operators.is_recomputation())
    looked_at = compiling or wrapped or operators.watched(x)
    if residual is not None or mask is not None:
        looked_at = looked_at or checks.any_wrapped((residual, mask))
    runs = not looked_at or plain.is_wanted(x)
    count: Any = 1
    if mask is not None and not runs:
        count = mask.any()
    elif mask is not None:
        masked.check(mask, refusal)
        update = update and masked.keeps_any(mask)
    if update and seen is not None:
        seen.add_(count)
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)
    held: Any = running if update or not use_batch else None
    if runs:
        recipe = stages.recipe(norm, options, tuple(params), use_batch, not use_batch)
        counted: Any = (*held, momentum, seen) if update else None
        call = Call(recipe, params, None if use_batch else held, eps, act, counted)
        if mask is not None:
            return masked.normalize(x, residual, mask, call)
        return plain.normalize(x, residual, call) if looked_at else operators.normalize(x, residual, call)
    y: Tensor
    given: Any = [*params.values()], [] if held is None else [*held], seen if update else None
    how = norm, " ".join(params), repr(options), use_batch, eps, "" if act is None else str(act), momentum
    if mask is None:
        y, _, mean, var = operators.OPERATOR(x, residual, *given, *how)
    else:
        y, mean, var = masked_operators.OPERATOR(x, residual, mask, *given, *how, refusal)
    if update:
        with torch.no_grad():
            held[0].copy_(mean)
            held[1].copy_(var)
    return y
