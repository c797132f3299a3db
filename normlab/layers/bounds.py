"""Parameters that have bounds, kept in them without a call: after each step of the optimizer that changes them.

torch calls a hook after every step of every optimizer. The hook goes through the layers with bounded parameters that
are alive, and clamps the parameters that this optimizer holds.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Bounded(Protocol):
    """A layer with parameters that have bounds."""

    def bounded(self) -> dict[str, tuple[float, float]]: ...


_layers: WeakSet[Any] = WeakSet()
_hook: list[Any] = []  # at most one


def keep(layer: Bounded) -> None:
    """Clamp the layer's bounded parameters after each step of a torch optimizer that holds them."""
    _layers.add(layer)
    if not _hook:
        _hook.append(register_optimizer_step_post_hook(_after_step))


@torch.no_grad()
def clamp(layer: Bounded, held: set[int] | None = None) -> None:
    """Clamp the layer's bounded parameters; with `held`, only those whose id is in it."""
    for name, (low, high) in layer.bounded().items():
        parameter: Tensor | None = getattr(layer, name)
        if parameter is not None and (held is None or id(parameter) in held):
            parameter.clamp_(low, high)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    layers = list(_layers)
    if layers:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for layer in layers:
            clamp(layer, held)
