"""Watch one forward pass: which norms see which shapes, fed by what, how often."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normlab.check.subjects.base import kind_from_name
from normlab.errors import UsageError

LINEAR = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
DROPOUT = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
ACTIVATIONS = ("relu", "relu_", "leaky_relu", "leaky_relu_", "gelu", "silu", "elu", "hardswish", "mish", "relu6")
AVERAGES = ("mean", *(f"{how}avg_pool{rank}d" for how in ("adaptive_", "") for rank in (1, 2, 3)))
FUNCTIONAL = {
    "batch_norm": "batch",
    "instance_norm": "instance",
    "group_norm": "group",
    "layer_norm": "layer",
    "rms_norm": "rms",
}


@dataclass
class Site:
    """A norm in the model: where, which kind, and what it was fed."""

    path: str
    kind: str
    module: nn.Module | None
    shape: tuple[int, ...]
    values_per_pool: int  # for batch norm: of one sample
    training: bool
    tracks: bool
    calls: int = 1
    dtype: torch.dtype = torch.float32
    fed_by: tuple[str, nn.Module | None] | None = None  # a convolution or linear layer with a bias
    dropout: str | None = None
    averaged_by: str | None = None  # what takes the mean of each channel of its output
    through: str | None = None  # the activation between the two


@dataclass
class Trace:
    sites: dict[str, Site] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[Site]:
        return [s for s in self.sites.values() if s.kind in kinds]


def kind_of(module: nn.Module) -> str | None:
    """The kind of norm that a module is, by its class and its name; None for other modules and for containers."""
    return kind_from_name(_name(module)) if is_norm(module) else None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is called a norm, whichever; containers are not."""
    name = _name(module).lower()
    other = "spectral" in name or "weight_norm" in name
    return "norm" in name and not other and not any(True for _ in module.children())


def _name(module: nn.Module) -> str:
    own = getattr(getattr(module, "entry", None), "name", "")  # our own layers carry their name
    return f"{type(module).__name__}_{own}"


class _TensorTrace(TorchFunctionMode):
    """Follow tensors from the functions that made them to the norms that read them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.inside: list[tuple[str, nn.Module]] = []
        self.made_by: dict[int, tuple[str, nn.Module | None]] = {}
        self.dropped: dict[int, str] = {}
        self.normed: dict[int, tuple[str, str | None]] = {}
        self.kept: list[Any] = []  # ids stay unique while their tensors live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if not isinstance(answer, torch.Tensor):
            return answer
        name = getattr(func, "__name__", "")
        path, module = self.inside[-1] if self.inside else ("", None)
        in_norm = module is not None and kind_of(module) is not None
        inputs = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        for group in args:
            if isinstance(group, (list, tuple)):
                inputs += [a for a in group if isinstance(a, torch.Tensor)]
        self.kept.append(answer)
        self.made_by.pop(id(answer), None)
        self._record_average(func, name, path, inputs, args, kwargs, answer)
        sources = [self.dropped[id(a)] for a in inputs if id(a) in self.dropped]
        if name in LINEAR:
            bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
            if isinstance(bias, torch.Tensor):
                self.made_by[id(answer)] = (path or name, module)
        if name in DROPOUT and _is_on(args, kwargs, module):
            self.dropped[id(answer)] = path or name
        elif name in FUNCTIONAL and not in_norm:
            self.see(
                f"{path}.{name}".strip("."), FUNCTIONAL[name], None, args[0], _functional_facts(name, args, kwargs)
            )
        elif sources and name not in FUNCTIONAL:
            self.dropped[id(answer)] = sources[0]
        return answer

    def _record_average(
        self, func: Any, name: str, path: str, inputs: list[Any], args: Any, kwargs: Any, answer: torch.Tensor
    ) -> None:
        """Whether a norm's output is averaged over all positions, as it is or after an activation."""
        source = next((self.normed[id(a)] for a in inputs if id(a) in self.normed), None)
        if source is None:
            return
        where, through = source
        x = inputs[0]
        if name in ACTIVATIONS:
            self.normed[id(answer)] = (where, through or name)
        elif name in AVERAGES and _over_all_positions(x, answer) and where in self.trace.sites:
            site = self.trace.sites[where]
            site.averaged_by, site.through = path or name, through

    def see(
        self, path: str, kind: str, module: nn.Module | None, x: torch.Tensor, facts: tuple[int, bool, bool]
    ) -> None:
        """Note that a norm reads x."""
        if path in self.trace.sites:
            self.trace.sites[path].calls += 1
            return
        values, training, tracks = facts
        self.trace.sites[path] = Site(
            *(path, kind, module, tuple(x.shape), values, training, tracks),
            dtype=x.dtype,
            fed_by=self.made_by.get(id(x)),
            dropout=self.dropped.get(id(x)),
        )


def _over_all_positions(x: torch.Tensor, answer: torch.Tensor) -> bool:
    """Whether one value is left of each channel."""
    return x.dim() > 2 and answer.numel() == x.shape[0] * x.shape[1]


def _is_on(args: Any, kwargs: Any, module: nn.Module | None) -> bool:
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    return bool(p) and bool(training)


def _functional_facts(name: str, args: Any, kwargs: Any) -> tuple[int, bool, bool]:
    x = args[0]
    positions = x[0, 0].numel() if x.dim() > 1 else 1
    if name == "batch_norm":
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
        running = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        return positions, bool(training), running is not None
    if name == "group_norm":
        groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 1)
        return x.shape[1] // groups * positions, True, False
    if name in ("layer_norm", "rms_norm"):
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else x.shape[-1:])
        return int(torch.Size(shape).numel()), True, False
    return positions, True, False


def _module_facts(module: nn.Module, kind: str, x: torch.Tensor) -> tuple[int, bool, bool]:
    """Values per pool (of one sample), whether the batch's statistics are used, whether running ones are kept."""
    positions = x[0, 0].numel() if x.dim() > 1 else 1
    running = getattr(module, "running_mean", None) is not None
    if kind in ("batch", "batch-instance"):
        return positions, module.training or not running, running
    if kind == "group":
        groups = int(getattr(module, "num_groups", getattr(module, "groups", 1)))
        return x.shape[1] // max(groups, 1) * positions, True, False
    if kind in ("layer", "rms"):
        shape: Any = getattr(module, "normalized_shape", None)
        if shape is None:
            weight = getattr(module, "weight", None)
            shape = x.shape[1:] if weight is None or weight.shape[0] == x.shape[1] else x.shape[-1:]
        return int(np.prod(shape)), True, False
    return positions, True, running


@dataclass(frozen=True)
class Input:
    """One argument of a model, without the batch axis: shape, name, whether it holds integers (None: guessed)."""

    shape: tuple[int, ...]
    name: str | None = None
    integer: bool | None = None


Inputs = tuple[int, ...] | Sequence[tuple[int, ...] | Input] | Mapping[str, tuple[int, ...]] | None


def inputs_of(size: Inputs) -> list[Input]:
    """One sample's shape, several of them, or shapes by name, as a list; empty where none is given."""
    if size is None:
        return []
    if isinstance(size, Mapping):
        return [Input(tuple(shape), name) for name, shape in size.items()]
    if all(isinstance(s, int) for s in size):
        return [Input(tuple(size))]  # type: ignore[arg-type]
    return [s if isinstance(s, Input) else Input(tuple(s)) for s in size]  # type: ignore[arg-type]


def watch(model: nn.Module, size: Inputs) -> Trace:
    """Run the model once on two samples and note its norms; the model itself is left as it is.

    `size` is one sample's shape, (C, H, W) or what the model takes, a list of them for several arguments, or a
    dictionary by name; None guesses it from the first layer. Raises UsageError when the model cannot be run.
    """
    failures = []
    given = inputs_of(size)
    tokens_first = any(isinstance(m, nn.Embedding) for m in list(model.modules())[:3])
    for candidate in [given] if given else [[Input(s)] for s in guesses(model)]:
        for integer in (tokens_first, not tokens_first):
            for device in ("meta", "cpu"):
                try:
                    return _watch_once(model, candidate, integer, device)
                except Exception as e:
                    shapes = ", ".join(str((2, *i.shape)) for i in candidate)
                    said = (str(e).splitlines() or [""])[0][:120]
                    failures.append((integer, f"{shapes} on {device}: {type(e).__name__}: {said}"))
    told = "; ".join(text for integer, text in failures if integer == tokens_first)
    raise UsageError(
        f"the model does not take a batch of two ({told[-400:]}); name one sample's shape with --input 3,224,224, once "
        "for every argument, with :int behind it for integers"
    )


def _example(spec: Input, integer: bool, dtype: torch.dtype, device: str) -> torch.Tensor:
    whole = integer if spec.integer is None else spec.integer
    return torch.zeros((2, *spec.shape), dtype=torch.long if whole else dtype).to(device)


def _call(model: nn.Module, inputs: list[Input], tensors: list[torch.Tensor]) -> None:
    """Hand over the tensors: by place, by name, or in one dictionary where the model takes no such names."""
    named = {i.name: t for i, t in zip(inputs, tensors, strict=True) if i.name is not None}
    plain = [t for i, t in zip(inputs, tensors, strict=True) if i.name is None]
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if named and not takes_any and not set(named) <= set(parameters):
        model(*plain, named)
    else:
        model(*plain, **named)


def _watch_once(model: nn.Module, inputs: list[Input], integer: bool, device: str) -> Trace:
    twin = copy.deepcopy(model).to(device)
    trace = Trace()
    mode = _TensorTrace(trace)
    hooks = _add_hooks(twin, mode)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    tensors = [_example(i, integer, dtype, device) for i in inputs]
    try:
        with warnings.catch_warnings(), torch.no_grad(), mode:
            warnings.simplefilter("ignore")  # about the device that stands in for the real one
            _call(twin, inputs, tensors)
    except ValueError as e:
        if not _one_value_refused(trace, e):
            raise
    finally:
        for hook in hooks:
            hook.remove()
    names = dict(model.named_modules())
    for site in trace.sites.values():  # the original's modules, not the twin's
        site.module = names.get(site.path) if site.module is not None else None
        if site.fed_by is not None:
            site.fed_by = (site.fed_by[0], names.get(site.fed_by[0]))
    return trace


def _one_value_refused(trace: Trace, e: ValueError) -> bool:
    """Whether the model ended at an instance norm that has one value to normalize: that is a finding."""
    return "more than 1 spatial element" in str(e) and any(s.values_per_pool == 1 for s in trace.of("instance"))


def _add_hooks(twin: nn.Module, mode: _TensorTrace) -> list[Any]:
    """Hooks that record where the forward pass is and what the norms read."""
    hooks: list[Any] = []
    for path, module in twin.named_modules():
        kind = kind_of(module)

        def before(m: nn.Module, args: Any, path: str = path, kind: str | None = kind) -> None:
            if kind is not None and args and isinstance(args[0], torch.Tensor):
                mode.see(path, kind, m, args[0], _module_facts(m, kind, args[0]))
            mode.inside.append((path, m))

        def after(m: nn.Module, args: Any, answer: Any, path: str = path, kind: str | None = kind) -> None:
            mode.inside.pop()
            if kind is not None and isinstance(answer, torch.Tensor):
                mode.kept.append(answer)
                mode.normed[id(answer)] = (path, None)
                mode.dropped.pop(id(answer), None)

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    return hooks


def guesses(model: nn.Module) -> list[tuple[int, ...]]:
    """Sample shapes to try, from the first layer whose input follows from its attributes."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Conv3d)):
            rank = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[
                next(t for t in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, t))
            ]
            sides = {1: (1024, 128), 2: (224, 32, 28, 64, 128, 256), 3: (32, 16)}[rank]
            return [(module.in_channels, *[side] * rank) for side in sides]
        if isinstance(module, nn.Linear):
            return [(module.in_features,), (16, module.in_features)]
        if isinstance(module, nn.Embedding):
            return [(16,), (128,)]
        if (features := getattr(module, "num_features", None)) is not None:
            return [(int(features), 32, 32), (int(features),), (int(features), 32)]
    return [(3, 224, 224), (3, 32, 32), (64,)]
