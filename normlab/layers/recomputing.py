"""Outputs of normalization layers that are computed again in the backward pass instead of being kept until then.

A convolution keeps its input for its backward pass. Where that is the output y of a norm, two tensors are in memory of
which one is enough: the norm keeps its own input x. Within `recomputed_outputs`, autograd saves what it takes to
compute y again, wherever it would save y. The same code gives the same numbers, so gradients are those without it, bit
for bit; it costs a forward pass of the norm each time y is needed.

To compute an output takes the norm's input and a residual, which may be such outputs themselves. So that no chain of
blocks has to be gone through, an output is kept where it would take one that already takes another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from normlab.kernels import backend_for, stages, use_backend
from normlab.layers.call import Call

_DEEPEST = 2  # an output, and one that it takes
_outputs: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("normlab_outputs", default=None)


@contextmanager
def recomputed_outputs() -> Iterator[None]:
    """Within the block, autograd keeps no output of normlab's layers: the backward pass computes them again.

        with normlab.recomputed_outputs():
            loss = criterion(model(images), labels)
        loss.backward()

    For eager training, on any device; elsewhere (`torch.compile`) it has no effect. The backward pass raises
    RuntimeError if a tensor that it needs was changed in place since. The trade is that of Chen, Xu, Zhang & Guestrin
    2016, arXiv:1604.06174, at the layers where it costs least.
    """
    token = _outputs.set(WeakTensorKeyDictionary())
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _outputs.reset(token)


def is_recording() -> bool:
    """Whether layers are to `remember` their outputs."""
    return _outputs.get() is not None


def remember(y: Tensor, x: Tensor, residual: Tensor | None, call: Call) -> None:
    """Where a layer's output comes from."""
    known = _outputs.get()
    assert known is not None
    output = _Output(y, _pack(x), None if residual is None else _pack(residual), call)
    if output.depth <= _DEEPEST:
        known[y] = output


class _Snapshot:
    """A tensor as it was when it was saved; `detach` shares its memory and its count of changes, not its history."""

    depth = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version

    def recompute(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that the backward pass needs was changed in place after "
                "the forward pass; change a copy of it (x = x + 1 instead of x += 1)"
            )
        return self.tensor


class _Output:
    """What it takes to compute an output again; it does not hold the output."""

    def __init__(self, y: Tensor, x: _Snapshot | _Output, residual: _Snapshot | _Output | None, call: Call) -> None:
        self.version, self.backend = y._version, backend_for(y)
        self.x, self.residual, self.call = x, residual, call
        self.depth: int = 1 + max(x.depth, 0 if residual is None else residual.depth)
        self.others = [_Snapshot(v) for v in (*call.params.values(), *(call.running or ()))]

    def recompute(self) -> Tensor:
        for other in self.others:
            other.recompute()
        call, residual = self.call, self.residual
        with torch.no_grad(), use_backend(self.backend):
            y: Tensor
            y, _ = stages.forward(
                call.recipe, self.x.recompute(), call.params, running=call.running, eps=call.eps, act=call.act,
                residual=None if residual is None else residual.recompute(),
            )  # fmt: skip
        return y


def _pack(tensor: Tensor) -> _Snapshot | _Output:
    """What is saved in the place of a tensor."""
    known: Any = _outputs.get()
    output = None if known is None else known.get(tensor)
    # what was changed in place since the layer put it out is something else
    return output if output is not None and tensor._version == output.version else _Snapshot(tensor)


def _unpack(saved: _Snapshot | _Output) -> Any:
    return saved.recompute()
