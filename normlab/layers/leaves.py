"""How a layer stays one node where torch.fx writes a model down: a leaf, as torch's own layers are.

A tracer takes modules of `torch.nn` for leaves and goes into all others. It hands such a module a `Proxy` for its
input. A layer that is given one puts itself down as a `call_module` node, which is all that a leaf is: so every tracer
finds a leaf, that of a library included, without being told of our classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

_TENSORS = (Tensor, nn.Parameter)


def traces(x: Any) -> bool:
    """Whether torch.fx is writing down the program that x belongs to."""
    return type(x) not in _TENSORS and isinstance(x, Proxy)


def as_leaf(layer: nn.Module, *inputs: Any) -> Any:
    """The node of a graph that calls the layer with these inputs; those that are None at the end are left out."""
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    tracer: Any = given[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), tuple(given), {})
