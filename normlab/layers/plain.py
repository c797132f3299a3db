"""The norms in torch's own functions, for callers that cannot use our operators.

An ONNX exporter supports torch's operators; a tensor that is split over devices (DTensor) or jagged (nested) knows what
torch's functions do with it. There the layers compute as torch's do, at torch's speed. A norm's entry names its
function here; a norm without one is computed from its grid function (`normlab.layers.derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normlab.kernels import activations
from normlab.layers import derivatives
from normlab.layers.call import Call
from normlab.norms.family import NormEntry
from normlab.norms.grid import update_running

Running = tuple[Tensor, Tensor] | None


def is_wanted(x: Tensor) -> bool:
    """Whether torch's own functions must be called on x; to be asked only of what `operators.watched` finds."""
    return torch.onnx.is_in_onnx_export() or type(x).__name__ == "DTensor" or x.is_nested


def function_of(entry: NormEntry) -> Callable[..., Tensor] | None:
    """The function that a norm's entry names, of (x, weight, bias, options, running, training, momentum, eps)."""
    if entry.plain is None:
        return None
    module, _, name = entry.plain.partition(":")
    function: Callable[..., Tensor] = getattr(import_module(module), name)
    return function


def normalize(x: Tensor, residual: Tensor | None, call: Call) -> Tensor:
    """y = act(norm(x) + residual)."""
    entry, training = call.recipe.entry, call.recipe.training
    momentum: Any = 0.0
    running = call.running
    if call.update is not None:
        running, momentum, seen = call.update[:2], call.update[2], call.update[3]
        if momentum is None:
            momentum = 0.0 if seen is None else 1 / int(seen)
    function = function_of(entry)
    if function is None:
        y, applied = derivatives.normalize(call.recipe, x, call.params, call.running, call.eps, call.act, residual)
        if call.update is not None and applied is not None and applied.moments.batch is not None:
            with torch.no_grad():
                update_running(call.update[:2], applied.moments.batch, momentum)
        return y
    weight, bias = call.params.get("weight"), call.params.get("bias")
    y = function(x, weight, bias, dict(call.recipe.options), running, training, momentum, call.eps)
    if residual is not None:
        y = y + residual
    acted: Tensor = y if call.act is None else activations.apply(call.act, y)
    return acted


def batch_norm(
    x: Tensor, weight: Any, bias: Any, options: dict[str, Any], running: Running, training: bool, momentum: float,
    eps: float,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm`."""
    mean, var = running or (None, None)
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def instance_norm(
    x: Tensor, weight: Any, bias: Any, options: dict[str, Any], running: Running, training: bool, momentum: float,
    eps: float,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.instance_norm`."""
    mean, var = running or (None, None)
    return F.instance_norm(x, mean, var, weight, bias, training, momentum, eps)


def group_norm(
    x: Tensor, weight: Any, bias: Any, options: dict[str, Any], running: Running, training: bool, momentum: float,
    eps: float,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.group_norm`; one group unless the options say otherwise."""
    return F.group_norm(x, options.get("groups", 1), weight, bias, eps)
