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

Given = tuple[Tensor, ...]  # to a layer

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
        if layer not in inputs:
            found[layer] = "where='faster': the example does not come to it, so it was not timed"
            continue
        given = inputs[layer]
        if given is None:
            found[layer] = "where='faster': it is given other things than tensors, so it was not timed"
            continue
        held = tuple(
            None if p is None else tuple(p.shape) for p in (*layer._parameters.values(), *layer._buffers.values())
        )
        key = type(layer), str(layer), held, layer.training, *((v.shape, v.dtype, v.stride()) for v in given)
        if key not in known:
            known[key] = _explain_if_slower(layer, given, take)
        why = known[key]
        if why is not None:
            found[layer] = why
    return found


def _inputs(model: nn.Module, layers: list[nn.Module], example: tuple[Any, ...]) -> dict[nn.Module, Given | None]:
    """{layer: the tensors that it is first given}: its input, and a gate for those that have one; or None."""
    found: dict[nn.Module, Given | None] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tuple(v for v in (*args, *kwargs.values()) if v is not None)  # a gate that is not there
        if given and all(isinstance(v, Tensor) for v in given):
            found[layer] = found.get(layer) or _copied(given)
        else:
            found.setdefault(layer, None)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with in_mode(model, False), torch.no_grad(), given_to(model, "swap_norms", "the example"):
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _copied(given: Given) -> Given:
    return tuple(v.detach().clone(memory_format=torch.preserve_format) for v in given)


def _explain_if_slower(layer: nn.Module, given: Given, take: Callable[[nn.Module], None]) -> str | None:
    """What was measured, if ours is slower; or why the layer cannot be timed by itself."""
    theirs, ours = copy.deepcopy(layer), copy.deepcopy(layer)
    take(ours)
    best, shape = [float("inf"), float("inf")], tuple(given[0].shape)
    try:
        for _ in range(ROUNDS):
            best = [min(b, seconds(one, *given)) for b, one in zip(best, (theirs, ours), strict=True)]
    except Exception as error:  # in training a batch of one value per channel, say
        return f"where='faster': it could not be timed on {shape} ({first_line(error)})"
    if best[1] <= MARGIN * best[0]:
        return None
    what = "a training step" if layer.training else "a call"
    ours_took, theirs_took = (f"{v * 1e6:.0f} us" for v in reversed(best))
    return f"where='faster': {what} on {shape} takes {ours_took} as ours, {theirs_took} as it is"


def seconds(layer: nn.Module, *given: Tensor) -> float:
    """Time of a call, with its backward pass if the layer is in training: the mean over a few milliseconds."""
    given = tuple(v.requires_grad_(layer.training) for v in _copied(given))
    x = given[0]
    calls, began = -1, 0.0  # the first call is not counted
    while calls < 1 or perf_counter() - began < SECONDS:
        with torch.set_grad_enabled(layer.training):
            y = layer(*given)
        if layer.training:
            y.backward(x.detach().to(y.dtype))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        calls += 1
        began = began if calls else perf_counter()
    return (perf_counter() - began) / calls
