"""Activations as torch and other libraries have them, and as a layer of ours takes them: which is which.

A module or a call counts as one of `normlab.kernels.activations` only if it computes exactly that. Of torch's own, the
class says so; a module of somebody else's without parameters and parts is run on a few hundred numbers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from normlab.kernels.activations import CONSTANTS, NAMES, Activation, activation

_MODULES: dict[type, Callable[[Any], Activation | None]] = {
    nn.ReLU: lambda m: Activation("relu"),
    nn.SiLU: lambda m: Activation("silu"),
    nn.GELU: lambda m: Activation("gelu") if m.approximate == "none" else None,
    nn.LeakyReLU: lambda m: Activation("leaky_relu", m.negative_slope),
    nn.ReLU6: lambda m: Activation("relu6"),
    nn.Hardsigmoid: lambda m: Activation("hardsigmoid"),
    nn.Hardswish: lambda m: Activation("hardswish"),
    nn.ELU: lambda m: Activation("elu", m.alpha),
    nn.Threshold: lambda m: Activation("tlu", m.threshold) if m.threshold == m.value else None,
    nn.Mish: lambda m: Activation("mish"),
}
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
    functional.relu6: "relu6",
    functional.hardsigmoid: "hardsigmoid",
    functional.hardswish: "hardswish",
    functional.elu: "elu",
    functional.elu_: "elu",
    functional.threshold: "tlu",
    functional.mish: "mish",
}
_IN_TORCH: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, c: functional.relu(z),
    "leaky_relu": lambda z, c: functional.leaky_relu(z, c),
    "silu": lambda z, c: functional.silu(z),
    "gelu": lambda z, c: functional.gelu(z),
    "relu6": lambda z, c: functional.relu6(z),
    "hardsigmoid": lambda z, c: functional.hardsigmoid(z),
    "hardswish": lambda z, c: functional.hardswish(z),
    "elu": lambda z, c: functional.elu(z, c),
    "tlu": lambda z, c: functional.threshold(z, c, c),
    "mish": lambda z, c: functional.mish(z),
    "quick_gelu": lambda z, c: z * torch.sigmoid(1.702 * z),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None; None as well where a hook would miss its call."""
    if is_watched(module):
        return None
    known = _MODULES.get(type(module))
    return _recognize(module) if known is None else known(module)


def activation_called(node: fx.Node) -> Activation | None:
    """The activation that a call in a graph of torch.fx is, or None."""
    name = _FUNCTIONS.get(node.target)
    if name is None:
        return None
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if name == "gelu" and kwargs.pop("approximate", "none") != "none":
        return None
    constant = 0.0
    if name in CONSTANTS:
        argument, usual = {"slope": "negative_slope"}.get(CONSTANTS[name][0], CONSTANTS[name][0]), CONSTANTS[name][1]
        given: Any = kwargs.pop(argument, node.args[1] if len(node.args) > 1 else usual)
        if not isinstance(given, float | int):
            return None
        if name == "tlu" and given != kwargs.pop("value", node.args[2] if len(node.args) > 2 else None):
            return None
        constant = float(given)
    return None if kwargs else Activation(name, constant)


def in_torch(act: Activation) -> Callable[[Tensor], Tensor]:
    """torch's function for an activation."""
    function = _IN_TORCH[act.name]
    return lambda z: function(z, act.constant)


def is_watched(module: nn.Module) -> bool:
    """Whether a hook is on a module, which would see something else if the module were not called."""
    held = vars(module)
    return any(held.get(name) for name in _HOOKS)


def is_passive(module: nn.Module) -> bool:
    """Whether a module returns its input and nobody watches it."""
    return type(module) is nn.Identity and not is_watched(module)


# --- modules of others -----------------------------------------------------------------------------------------------

_seen: dict[Any, Activation | None] = {}  # by class and attributes


def _recognize(module: nn.Module) -> Activation | None:
    """The activation that a module without parameters and parts computes, in training and in evaluation; or None."""
    held = vars(module)
    if torch.compiler.is_compiling() or held["_parameters"] or held["_buffers"] or held["_modules"]:
        return None
    if type(module).__module__.startswith("torch."):
        return None
    key = type(module), tuple((k, v) for k, v in held.items() if k[0] != "_" and k != "training")
    try:
        if key not in _seen:
            _seen[key] = _search_activation(module)
        return _seen[key]
    except TypeError:  # an attribute that cannot be a key may be a memory
        return None


def _search_activation(module: nn.Module) -> Activation | None:
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return None
    z = torch.linspace(-9, 9, 720, dtype=torch.float64).view(2, 3, 10, 12)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        return next((act for act in map(activation, NAMES) if act is not None and _computes(module, act, z)), None)


def _computes(module: nn.Module, act: Activation, z: Tensor) -> bool:
    for training in (False, True):
        tried: nn.Module = copy.copy(module)
        vars(tried)["training"] = training
        before = dict(vars(tried))
        found = []
        for function in (tried.forward, in_torch(act)):
            v = z.clone().requires_grad_()
            try:
                y: Any = function(v * 1)  # which may be changed in place
                found.append((y, *torch.autograd.grad(y.sum(), v)))
            except Exception:
                return False
        same = all(a.shape == b.shape and torch.allclose(a, b, 1e-6, 1e-9) for a, b in zip(*found, strict=True))
        if not same or vars(tried) != before:
            return False
    return True
