"""Where ours pays: one layer of somebody else's timed beside ours, on inputs such as the model gives it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from normlab.layers.images import first_line, given_to
from normlab.layers.modes import in_mode

ROUNDS, SECONDS = 5, 0.003  # of each layer, and of a round
MARGIN = 1.03  # a layer of ours that takes longer than torch's by less is no slower


def slower(
    model: nn.Module, layers: Iterable[nn.Module], example: Any, take: Callable[[nn.Module], None]
) -> dict[nn.Module, str]:
    """{layer: what was measured}, of those layers in a model that would take longer as ours, or cannot be timed.

    `example` is the model's input, or a tuple of them; the model runs on it once, in evaluation. `take` turns a layer
    into ours. Of a layer in training a forward and a backward pass are timed, else a forward pass.
    """
    found: dict[nn.Module, str] = {}
    known: dict[Any, str | None] = {}
    layers = list(layers)
    inputs = _inputs(model, layers, example if isinstance(example, tuple) else (example,))
    for layer in layers:
        x = inputs.get(layer)
        if x is None:
            found[layer] = "where='faster': the example does not come to it, so it was not timed"
            continue
        held = tuple(
            None if p is None else tuple(p.shape) for p in (*layer._parameters.values(), *layer._buffers.values())
        )
        key = type(layer), str(layer), held, layer.training, tuple(x.shape), x.dtype, x.stride()
        if key not in known:
            known[key] = _explain_if_slower(layer, x, take)
        why = known[key]
        if why is not None:
            found[layer] = why
    return found


def _inputs(model: nn.Module, layers: list[nn.Module], example: tuple[Any, ...]) -> dict[nn.Module, Tensor]:
    """{layer: its first input}, where it is one tensor."""
    found: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            found.setdefault(layer, x.detach().clone(memory_format=torch.preserve_format))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with in_mode(model, False), torch.no_grad(), given_to(model, "swap_norms", "the example"):
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _explain_if_slower(layer: nn.Module, x: Tensor, take: Callable[[nn.Module], None]) -> str | None:
    """What was measured, if ours is slower; or why the layer cannot be timed by itself."""
    theirs, ours = copy.deepcopy(layer), copy.deepcopy(layer)
    take(ours)
    best = [float("inf"), float("inf")]
    try:
        for _ in range(ROUNDS):
            best = [min(b, seconds(one, x)) for b, one in zip(best, (theirs, ours), strict=True)]
    except Exception as error:  # in training a batch of one value per channel, say
        return f"where='faster': it could not be timed on {tuple(x.shape)} ({first_line(error)})"
    if best[1] <= MARGIN * best[0]:
        return None
    what = "a training step" if layer.training else "a call"
    ours_took, theirs_took = (f"{v * 1e6:.0f} us" for v in reversed(best))
    return f"where='faster': {what} on {tuple(x.shape)} takes {ours_took} as ours, {theirs_took} as it is"


def seconds(layer: nn.Module, x: Tensor) -> float:
    """Time of a call, with its backward pass if the layer is in training: the mean over a few milliseconds."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(layer.training)
    calls, began = -1, 0.0  # the first call is not counted
    while calls < 1 or perf_counter() - began < SECONDS:
        with torch.set_grad_enabled(layer.training):
            y = layer(x)
        if layer.training:
            y.backward(x.detach())
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        calls += 1
        began = began if calls else perf_counter()
    return (perf_counter() - began) / calls
