"""Three numbers for each norm in training: drift of what it sees, mismatch of its statistics, dead channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers.swap import norms_in

_TINY = 1e-12


class NormWatch:
    """Looks at a model's norms in single steps of its training.

        watch = NormWatch(model)
        watch.start()
        ...  # a step as usual
        print(watch.stop())  # {"norms/drift": ..., "norms/mismatch": ..., "norms/dead": ...}

    Between `stop` and the next `start` the model is untouched, and a step costs what it did. In a step that is watched,
    every norm's input is measured per channel, and

    - **drift** is how far its means have moved since the first step that was watched, in deviations of that step: the
      average over the channels;
    - **mismatch**, of norms with running statistics, is how far the batch's are from these: the average of
      |mean - running mean| / running deviation + |log(deviation / running deviation)|. In evaluation the network
      sees so much of a difference;
    - **dead** is the share of channels whose outputs are nowhere above zero, so that a ReLU passes nothing on.

    `stop` returns the largest drift and mismatch of all norms and the average share of dead channels; `layers` has all
    three for each norm, by name, and `history` every result. Raises UsageError if the model has no norm.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = dict(norms_in(model))
        if not self._norms:
            raise UsageError("NormWatch: this model has no norm to watch")
        self._first: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []
        self.layers: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, float]] = []

    def start(self) -> None:
        """Watch what follows, until `stop`."""
        self._release()
        self.layers = {}
        for name, norm in self._norms.items():

            def look(layer: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                if inputs and isinstance(inputs[0], Tensor):
                    self.layers[name] = self._input(name, layer, inputs[0].detach())

            def dead(layer: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and name in self.layers:
                    self.layers[name]["dead"] = _dead(_by_channel(layer, output.detach()))

            self._handles += [norm.register_forward_pre_hook(look), norm.register_forward_hook(dead)]

    def stop(self) -> dict[str, float]:
        """End watching, and return what was seen; nothing if no norm was called or nothing was watched."""
        if not self._handles:
            return {}
        self._release()
        seen: dict[str, float] = {}
        for name, over in (("drift", max), ("mismatch", max), ("dead", _average)):
            values = [layer[name] for layer in self.layers.values() if name in layer]
            if values:
                seen[f"norms/{name}"] = over(values)
        if seen:
            self.history.append(seen)
        return seen

    def _release(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _input(self, name: str, layer: Any, x: Tensor) -> dict[str, float]:
        var, mean = torch.var_mean(_by_channel(layer, x).double(), 1, correction=0)
        deviation = var.sqrt().clamp_min(_TINY)
        first_mean, first = self._first.setdefault(name, (mean, deviation))
        found = {}
        if first_mean.shape == mean.shape:
            found["drift"] = float(((mean - first_mean).abs() / first).mean())
        running_mean, running_var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if running_mean is not None and running_var is not None:
            known = (running_var.double() + float(getattr(layer, "eps", 0))).sqrt().clamp_min(_TINY)
            apart = (mean - running_mean.double()).abs() / known + (deviation / known).log().abs()
            found["mismatch"] = float(apart.mean())
        return found


def _by_channel(layer: Any, x: Tensor) -> Tensor:
    """(C, values of the channel)."""
    return x.movedim(_channel_axis(layer, x), 0).flatten(1)


def _channel_axis(layer: Any, x: Tensor) -> int:
    """Axis 1 of norms that have a number of channels; of others the first that their weight spans, mostly the last.

    A norm of one weight per channel that is used with channels first (`LayerNorm2d` of timm and others) shows it by
    where an axis of that size is; where both are, by its name or its `data_format`.
    """
    if getattr(layer, "num_features", getattr(layer, "num_channels", None)) is not None:
        return 1
    shape = getattr(layer, "normalized_shape", None)
    if shape is None:
        weight = getattr(layer, "weight", None)
        shape = weight.shape if isinstance(weight, Tensor) else ()
    spanned = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(spanned) > 1:
        return max(x.ndim - len(spanned), 0)
    if x.ndim > 2 and spanned and x.shape[1] == spanned[0]:
        named = type(layer).__name__.endswith("2d") or getattr(layer, "data_format", "") == "channels_first"
        return 1 if named or x.shape[-1] != spanned[0] else -1
    return -1


def _dead(y: Tensor) -> float:
    return float((y <= 0).all(1).double().mean())


def _average(values: list[float]) -> float:
    return sum(values) / len(values)
