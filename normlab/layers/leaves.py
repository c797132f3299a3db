"""What a layer is to torch's tools that read a program: a leaf of a graph, and nothing that TorchScript compiles.

A tracer takes modules of `torch.nn` for leaves and goes into all others. It hands such a module a `Proxy` for its
input. A layer that is given one puts itself down as a `call_module` node, which is all that a leaf is: so every tracer
finds a leaf, that of a library included, without being given our classes. A layer that is traced by itself is
written down in torch's functions, as torch's layer is.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy

from normlab.kernels import activations
from normlab.kernels.activations import Activation

_TENSORS = (Tensor, nn.Parameter)


def traces(x: Any) -> bool:
    """Whether torch.fx is writing down the program that x belongs to."""
    return type(x) not in _TENSORS and isinstance(x, Proxy)


def is_root(layer: nn.Module, x: Any) -> bool:
    """Whether the layer is all that is traced: what is no part of another module cannot be a node."""
    return bool(x.tracer.root is layer)


def finished(
    y: Tensor, residual: Tensor | None, act: Activation | None, own: Activation | None, mask: Tensor | None
) -> Tensor:
    """act(y + residual), of what a traced layer is given, which comes before its own; a mask was not traced."""
    if mask is not None:
        raise ValueError("a layer that torch.fx traced by itself takes no mask; trace torch.nn.Sequential(layer)")
    z = y if residual is None else y + residual
    act = own if act is None else act
    return z if act is None else activations.apply(act, z)


def as_leaf(layer: nn.Module, *inputs: Any) -> Tensor:
    """The node of a graph that calls the layer with these inputs; those that are None at the end are left out."""
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    tracer: Any = given[0].tracer
    node: Tensor = tracer.create_proxy(
        "call_module", tracer.path_of_module(layer), tuple(given), {}
    )  # that passes for the output
    return node


def refuse_script(layer: nn.Module) -> NoReturn:
    """Raise RuntimeError: TorchScript compiles Python, and finds kernels where it expects torch's functions."""
    raise RuntimeError(
        f"{type(layer).__name__}: TorchScript cannot compile normlab's layers; compile a copy that has torch's own: "
        "torch.jit.script(normlab.restore_norms(copy.deepcopy(model)))"
    )
