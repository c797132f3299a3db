"""Activations as torch has them, and as a layer of ours takes them: which is which.

A module or a call counts as one of `normlab.kernels.activations` only if it computes exactly that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from normlab.kernels.activations import SLOPE, Activation

_MODULES: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu", nn.LeakyReLU: "leaky_relu"}
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    functional.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    functional.leaky_relu: "leaky_relu",
    functional.leaky_relu_: "leaky_relu",
    functional.silu: "silu",
    functional.gelu: "gelu",
}
_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None; None as well where a hook would miss its call."""
    name = _MODULES.get(type(module))
    if name is None or is_watched(module):
        return None
    if name == "leaky_relu":
        return Activation(name, module.negative_slope)  # type: ignore[arg-type]
    if name == "gelu" and module.approximate != "none":
        return None
    return Activation(name)


def activation_called(node: fx.Node) -> Activation | None:
    """The activation that a call in a graph of torch.fx is, or None."""
    name = _FUNCTIONS.get(node.target)
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if name == "leaky_relu":
        slope = kwargs.pop("negative_slope", node.args[1] if len(node.args) > 1 else SLOPE)
        return Activation(name, slope) if isinstance(slope, float | int) and not kwargs else None
    if name == "gelu" and kwargs.pop("approximate", "none") != "none":
        return None
    return None if name is None or kwargs else Activation(name)


def in_torch(act: Activation) -> Callable[[Tensor], Tensor]:
    """torch's function for an activation."""
    function = _IN_TORCH[act.name]
    return partial(function, negative_slope=act.slope) if act.name == "leaky_relu" else function


def is_watched(module: nn.Module) -> bool:
    """Whether a hook is on a module, which would see something else if the module were not called."""
    held = vars(module)
    return any(held.get(name) for name in _HOOKS)


def is_passive(module: nn.Module) -> bool:
    """Whether a module returns its input and nobody watches it."""
    return type(module) is nn.Identity and not is_watched(module)
