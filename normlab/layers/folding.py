"""Batch norm put into the convolution or linear layer before it, for deployment.

In evaluation batch norm is a constant map of each channel, and so is part of the layer before it. Which layer that is,
and whether anything else sees its output, is found by running the network once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.overrides import TorchFunctionMode

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.layers import adapters, checks
from normlab.layers._torch import BatchNormBase
from normlab.layers.acting import in_torch, is_passive, is_watched
from normlab.layers.images import given_to
from normlab.layers.norms import Norm
from normlab.layers.swap import norms_in

Model = TypeVar("Model", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_KINDS = ("batch", "frozen")  # of other libraries' layers


@dataclass(frozen=True)
class FoldReport:
    """What `fold` made of a model: norm -> the layer that it is part of now, and which norms were left and why.

    `error` is the largest difference that it made to the outputs on the images, over their largest magnitude.
    """

    folded: dict[str, str]
    left: dict[str, str] = field(default_factory=dict)
    error: float = 0.0

    def __str__(self) -> str:
        are = "norm is" if len(self.folded) == 1 else "norms are"
        lines = [
            f"{len(self.folded)} {are} folded, {len(self.left)} left alone; the outputs differ by {self.error:.1e}"
        ]
        lines += [f"  {norm} is in {layer} now" for norm, layer in self.folded.items()]
        lines += [f"  left: {norm}: {why}" for norm, why in self.left.items()]
        return "\n".join(lines)


class Folded(nn.Module):
    """What stays of a norm that is folded: act(x + residual), with what its layer applied behind the norm."""

    def __init__(self, act: Activation | None, behind: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.act = act
        self.behind = nn.Sequential(*behind)

    def forward(self, input: Tensor, residual: Tensor | None = None, act: Activation | None = None) -> Tensor:
        y: Tensor = self.behind(input)
        y = y if residual is None else y + residual
        act = self.act if act is None else act
        return y if act is None else in_torch(act)(y)

    def extra_repr(self) -> str:
        return "" if self.act is None else f"act={str(self.act)!r}"


def fold(model: Model, images: Tensor) -> Model:
    """Put every batch norm into the convolution or linear layer before it, in place; returns the model.

        weight' = weight * s        bias' = (bias - running_mean) * s + norm's bias
        s = norm's weight / sqrt(running_var + eps)

    The network computes what it computed in evaluation mode, with fewer layers; train it no further. `images` are one
    or more inputs as the model takes them: they run through it once, to find the layer before each norm. Folded are
    batch norms with running statistics (frozen, ghost and renormalizing ones too) behind a layer whose output nothing
    else sees; `fold_report(model)` says which, and why others were left. There is no way back: keep a copy.

    Raises UsageError if no norm can be folded, or the model does not take the images.
    """
    checks.module("fold", model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            pairs, left = _pairs(model, images)
            if not pairs:
                why = "".join(f"\n  {name}: {reason}" for name, reason in left.items())
                raise UsageError(f"fold: this model has no norm that can be folded{why}")
            before = _tensors(model(images))
            places = {id(module): name for name, module in model.named_modules()}
            for norm, layer in pairs:
                _fold_into(layer, norm)
                _replace(model, norm, _remaining_module(norm))
            error = _difference(before, _tensors(model(images)))
    finally:
        for module in model.modules():
            module.training = modes.get(module, modes[model])
    folded = {places[id(norm)]: places[id(layer)] for norm, layer in pairs}
    _REPORTS[model] = FoldReport(folded, left, error)
    return model


def fold_report(model: nn.Module) -> FoldReport:
    """What `fold` did to this model. Raises UsageError if it did nothing."""
    checks.module("fold_report", model)
    if model not in _REPORTS:
        raise UsageError("fold_report: this model was not folded, or is a copy of one that was")
    return _REPORTS[model]


_REPORTS: WeakKeyDictionary[nn.Module, FoldReport] = WeakKeyDictionary()


def _pairs(model: nn.Module, images: Tensor) -> tuple[list[tuple[Any, Any]], dict[str, str]]:
    """The norms that can be folded with the layers before them, and why the others cannot."""
    norms = {name: module for name, module in norms_in(model) if name}
    left = {name: why for name, module in norms.items() if (why := _why_unfit(module)) is not None}
    fit = {name: module for name, module in norms.items() if name not in left}
    seen = _UseRecorder(model, list(fit.values()))
    with given_to(model, "fold", "the images"):
        seen.run(images)
    tied = _find_tied(model)
    pairs = []
    for name, module in fit.items():
        why = seen.why_not(module) or _why_unfoldable(seen.before[module], tied, module, seen.inputs)
        if why is None:
            pairs.append((module, seen.before[module]))
        else:
            left[name] = why
    return pairs, left


def _why_unfit(norm: Any) -> str | None:
    if is_watched(norm):
        return "a hook is on it"
    if isinstance(norm, Norm):
        more = {name for name, learned in norm.entry.parameters.items() if learned.trained} - {"weight", "bias"}
        if norm.running_mean is None or not norm.entry.takes_over or more:
            return "it is no batch norm in evaluation"
        return None
    if isinstance(norm, BatchNormBase) and type(norm).__module__.startswith("torch.nn"):
        return None if norm.running_mean is not None else "it has no running statistics"
    plan = adapters.probed(norm)
    if isinstance(plan, str):
        return plan
    return None if plan.kind in _KINDS and norm.running_mean is not None else "it is no batch norm in evaluation"


def _why_unfoldable(layer: nn.Module, tied: set[int], norm: Any, inputs: Mapping[nn.Module, Any]) -> str | None:
    if not isinstance(layer, _LINEAR):
        return f"before it comes a {type(layer).__name__}, which is neither a convolution nor linear"
    if "weight" not in layer._parameters:
        return "the weight of the layer before it is computed from others"
    if {id(p) for p in layer.parameters()} & tied:
        return "the layer before it shares a parameter with another"
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return "the layer before it is a transposed convolution in groups"
    if is_watched(layer):
        return "a hook is on the layer before it"
    if layer in inputs and not _is_foldable(layer, norm, inputs[layer]):
        return f"the {type(layer).__name__} before it does more than its base"
    return None


def _is_foldable(layer: Any, norm: Any, x: Tensor) -> bool:
    """Whether a layer with a forward pass of its own is, with the weight and bias of both, the layer and the norm."""
    try:
        layer, norm, x = copy.deepcopy(layer).double(), copy.deepcopy(norm).double(), x.double()
        expected = norm(layer(x))
        _fold_into(layer, norm)
        return _difference([expected], [_remaining_module(norm)(layer(x))]) < 1e-6
    except Exception:  # whatever it does, it is no layer of torch's
        return False


def _find_tied(model: nn.Module) -> set[int]:
    """The parameters that stand in several places."""
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    return {key for key, count in places.items() if count > 1}


class _UseRecorder(TorchFunctionMode):
    """What happens to the outputs of linear layers in one run of a network."""

    def __init__(self, model: nn.Module, norms: list[nn.Module]) -> None:
        super().__init__()
        self._model, self._norms = model, norms
        self._made: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs by id, which are held so that no id comes again
        self._calls: dict[nn.Module, int] = {}
        self._used: set[int] = set()
        self._within = 0  # norms, which may do with their inputs what they like
        self._masked: set[nn.Module] = set()
        self.before: dict[nn.Module, nn.Module] = {}
        self.inputs: dict[nn.Module, Any] = {}  # of layers that are not torch's own
        self._input: dict[nn.Module, int] = {}

    def run(self, images: Tensor) -> None:
        """Run the network once, watched."""
        handles = [m.register_forward_hook(self._record_layer) for m in self._model.modules() if isinstance(m, _LINEAR)]
        for norm in self._norms:
            handles.append(norm.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(norm.register_forward_hook(self._record_norm, always_call=True))
        try:
            with self:
                output = self._model(images)
        finally:
            for handle in handles:
                handle.remove()
        self._record_use(output)

    def why_not(self, norm: nn.Module) -> str | None:
        """Why a norm does not follow a linear layer alone, or None."""
        if self._calls.get(norm, 0) != 1:
            return f"it is called {self._calls.get(norm, 0)} times"
        if norm in self._masked:
            return "it is given a mask"
        if norm not in self.before:
            return "its input is no output of a convolution or a linear layer"
        if self._calls[self.before[norm]] != 1:
            return f"the layer before it is called {self._calls[self.before[norm]]} times"
        if self._input[norm] in self._used or list(self._input.values()).count(self._input[norm]) > 1:
            return "something else uses the output of the layer before it"
        return None

    def _record_layer(self, layer: Any, inputs: Any, output: Tensor) -> None:
        self._calls[layer] = self._calls.get(layer, 0) + 1
        if isinstance(output, Tensor) and output.dim() == layer.weight.dim():  # so that dimension 1 has its channels
            self._made[id(output)] = layer, output
        if not type(layer).__module__.startswith("torch.nn.modules."):
            self.inputs[layer] = inputs[0] if inputs else None

    def _enter(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls[norm] = self._calls.get(norm, 0) + 1
        given = {str(place): value for place, value in enumerate(args)} | kwargs
        x = given.pop("0" if args else "input", None)
        self._record_use(given)
        if isinstance(norm, Norm) and (kwargs.get("mask") is not None or any(v is not None for v in args[3:])):
            self._masked.add(norm)
        made = self._made.get(id(x))
        if made is not None:
            self.before[norm], self._input[norm] = made[0], id(x)
        self._within += 1

    def _record_norm(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        self._within -= 1

    def _record_use(self, values: Any) -> None:
        self._used.update(id(t) for t in _tensors(values) if id(t) in self._made)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        reads = getattr(func, "__name__", "") == "__get__" and not isinstance(found, Tensor)  # its shape and the like
        if not self._within and not reads:
            self._record_use((args, kwargs))
        return found


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested containers, in order."""
    return list(_iterate_tensors(value))


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _iterate_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iterate_tensors(item)


def _fold_into(layer: Any, norm: Any) -> None:
    """Give a layer the weight and bias of both, computed in float64."""
    weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    mean, var = norm.running_mean.double(), norm.running_var.double()
    held = (getattr(norm, name, None) for name in ("weight", "bias"))
    scale, shift = (
        v.double() if isinstance(v, Tensor) else torch.full_like(mean, n) for v, n in zip(held, (1, 0), strict=True)
    )
    statistics = (mean, var, float(norm.eps), scale, shift)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(weight, bias, *statistics)
    else:
        weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, isinstance(layer, _TRANSPOSED))
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.empty_like(bias, dtype=layer.weight.dtype))
    layer.bias.copy_(bias)


def _remaining_module(norm: Any) -> nn.Module:
    """The module that takes a norm's place."""
    if isinstance(norm, Norm):
        rest: nn.Module = Folded(norm.act)
        if "applies_relu" in vars(norm):
            rest.applies_relu = True  # type: ignore[assignment]
        return rest
    if type(norm).__module__.startswith("torch.nn"):
        return nn.Identity()
    plan: Any = adapters.probed(norm)
    return Folded(None, [part for name in plan.behind if not is_passive(part := getattr(norm, name))])


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    floats = [(a, b) for a, b in zip(before, after, strict=True) if a.is_floating_point()]
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in floats if a.numel()), default=0.0
    )
