"""Gates: a second tensor that a norm multiplies its input or its output by, as state-space models have them.

y = norm(x * act(gate))    or    y = norm(x) * act(gate)
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ARGUMENTS = ("gate", "z")  # names of the second argument
_ACTS: dict[str, Callable[[Tensor], Tensor]] = {"silu": nn.functional.silu, "sigmoid": torch.sigmoid}


class Gate(NamedTuple):
    """How a gate enters the norm that takes it."""

    argument: str
    required: bool  # the norm is not called without
    act: str = "silu"
    first: bool = True  # before the norm

    def open(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * act(gate)."""
        return x * _ACTS[self.act](gate)


def gate_of(layer: nn.Module) -> Gate | None:
    """The gate that a layer's forward pass takes beside its input; which of `kinds` it is remains to be found."""
    more = list(signature(layer.forward).parameters.values())[1:2]
    if not more or more[0].name not in ARGUMENTS:
        return None
    return Gate(more[0].name, more[0].default is more[0].empty)


def kinds(gate: Gate) -> list[Gate]:
    """The ways in which a gate may enter."""
    return [gate._replace(act=act, first=first) for act in _ACTS for first in (True, False)]


def fits(gate: Gate | None, args: tuple[Any, ...]) -> bool:
    """Whether a norm with this gate, or none, can be called with these: its input, and a gate of the same form."""
    if len(args) == 1:
        return gate is None or not gate.required
    if gate is None or len(args) != 2 or not all(isinstance(v, Tensor) for v in args):
        return False
    x, by = args
    return bool(by.shape == x.shape and by.dtype == x.dtype and by.device == x.device)
