"""Normlab's layers in the place of others, in a model that somebody else wrote.

`swap_norms` changes the layers and nothing else: code that holds one of them, its parameters or its buffers, holds the
same objects afterwards. What it does not take it leaves alone, and `swap_report` says why. `normlab.layers.fuse` goes
on from here, `normlab.layers.restore` goes back.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.layers import adapters, checks, faster, ranked
from normlab.layers._torch import BatchNormBase, InstanceNormBase, NormBase
from normlab.layers.norms import BatchNorm, ChannelNorm, GroupNorm, LayerNorm, Norm, RMSNorm
from normlab.layers.recasting import become

Model = TypeVar("Model", bound=nn.Module)
Adapter = Callable[[Any], nn.Module | None]

_log = logging.getLogger(__name__)


def swap_norms(model: Model, where: Literal["everywhere", "faster"] = "everywhere", example: Any = None) -> Model:
    """Turn the normalization layers of a model into normlab's, in place; returns the model.

    Taken are torch's batch, instance, group, layer and RMS norms; those of other libraries and of your own that compute
    the same as one of ours, with an activation behind it or not (timm, torchvision, transformers, detectron2), found
    by running a copy of each; and classes given to `register_adapter`. They keep what they have: parameters and
    buffers (the same objects, so an optimizer made before goes on), attributes, mode, hooks, `state_dict`, and their
    class: they are objects of a subclass of it; pruned, weight-normed and parametrized layers go on so. A layer that
    cannot be taken is left alone: synchronized, lazy, a subclass of torch's that may do more than its base, a formula
    of its own. `swap_report(model)` lists what was taken and what was left, and why; `restore_norms(model)` is the way
    back. What follows a norm stays where it is; `fuse_norms` takes it in.

    With `where="faster"` the model runs once on `example` (its input, or a tuple of them), and each layer is timed on
    what it was given beside ours: with its backward pass in training, without it in evaluation. A layer that would take
    more than 3 % longer stays, as does one that the example does not come to, and the report says what was measured.

    Warns if no layer was taken. Raises UsageError for what is no module, for another `where`, or one that needs an
    example and has none.
    """
    checks.module("swap_norms", model)
    for module in model.modules():
        vars(module).pop("_stays", None)
    if where == "faster":
        if example is None:
            raise UsageError("swap_norms: where='faster' times layers on the model's input: give it as example=...")
        candidates = [m for _, m in norms_in(model) if not is_ours(m) and why_left(m) is None]
        for module, why in faster.slower(model, candidates, example, take).items():
            vars(module)["_stays"] = why
    elif where != "everywhere":
        raise UsageError(f"swap_norms: where={where!r}; expected 'everywhere' or 'faster'")
    for module in list(model.modules()):
        take(module)
    report = swap_report(model)
    _log.info("swap_norms: %s", report)
    if not report.taken:
        warnings.warn(f"swap_norms: no layer was taken. {report}", stacklevel=2)
    return model


def register_adapter(their_class: type[nn.Module], to: type[nn.Module] | Adapter | None) -> None:
    """Have `swap_norms` and `fuse_norms` take the layers of a class.

        normlab.register_adapter(TheirBatchNorm, nn.BatchNorm2d)  # computes what torch's does, from its attributes
        normlab.register_adapter(TheirGroupNorm, lambda layer: normlab.layers.GroupNorm(layer.groups, layer.channels))
        normlab.register_adapter(TheirNorm, None)  # is left alone

    `to` is a class of torch's or of `normlab.layers` whose arguments are attributes of the layer, or a function of the
    layer that returns one of ours, or None to leave that one alone. Parameters and buffers of the layer take the place
    of those that ours was built with, by their names; names and shapes must be the same, but a weight or bias may be
    missing. Where they are not, or the function raises or returns another thing, the layer is left alone and the report
    says why. Subclasses are not included; a later call for the same class replaces the earlier one.

    Raises UsageError if `their_class` is not a class of modules, or `to` is nothing of these.
    """
    if not (isinstance(their_class, type) and issubclass(their_class, nn.Module)):
        raise UsageError(f"register_adapter: expected a subclass of torch.nn.Module, got {their_class!r}")
    if isinstance(to, type):
        made = next((made for base, made in _LIKE.items() if issubclass(to, base)), None)
        if made is None:
            raise UsageError(
                f"register_adapter: to={to.__name__} is no normalization layer of torch's or normlab's; "
                "give a function that builds one from the layer"
            )
        if issubclass(to, nn.SyncBatchNorm):
            raise UsageError(f"register_adapter: to={to.__name__}: {_POOLED}")
        kind = to
        _ADAPTERS[their_class] = lambda layer: made(layer, kind)
    elif isinstance(to, nn.Module):
        raise UsageError(f"register_adapter: to={to} is a layer; give its class, or a function that builds one")
    elif to is None or callable(to):
        _ADAPTERS[their_class] = to or (lambda layer: None)
    else:
        raise UsageError(f"register_adapter: expected a class, a function or None for `to`, got {to!r}")


@dataclass(frozen=True)
class SwapReport:
    """What `swap_norms` and `fuse_norms` made of a model's normalization layers, by their names in it."""

    taken: tuple[str, ...] = ()  # computed by normlab
    fused: dict[str, str] = field(default_factory=dict)  # those of them that take in what follows: what that is
    left: dict[str, str] = field(default_factory=dict)  # left alone: why

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} taken, {len(self.fused)} of them fused with what follows, {len(self.left)} left"]
        lines += [f"  left: {name or 'the model'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def swap_report(model: nn.Module) -> SwapReport:
    """Which normalization layers of a model are normlab's, which take in what follows them, which were left and why."""
    checks.module("swap_report", model)
    taken: list[str] = []
    fused: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if adapters.went_its_own_way(module):
            left[name] = "an attribute that was set after it was taken made it something else: it computes by itself"
        elif is_ours(module):
            taken.append(name)
            act = adapters.act_inside(module) or getattr(module, "act", None)
            if isinstance(act, Activation):
                fused[name] = str(act)
        elif (why := why_left(module)) is not None:
            left[name] = why
        for spot, what in vars(module).get("_fused_spots", {}).items():
            fused[f"{name}.{spot}" if name else spot] = what
    return SwapReport(tuple(taken), fused, left)


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a normalization layer that normlab computes."""
    return isinstance(module, (Norm, LayerNorm, RMSNorm, adapters.Taken))


def why_left(module: nn.Module) -> str | None:
    """Why `swap_norms` does not take a normalization layer; None for other modules, and for layers that it takes."""
    if isinstance(module, torch.jit.ScriptModule):
        is_norm = _sounds_like_a_norm(module.original_name) and not any(True for _ in module.children())
        return "it is compiled by TorchScript: swap before torch.jit.script or torch.jit.trace" if is_norm else None
    return None if is_ours(module) or not _is_norm(module) else _find_plan(module)[1]


def take(module: nn.Module) -> None:
    """Turn one layer into ours, if it can be, in place."""
    if is_ours(module) or not _is_norm(module):
        return
    how, _ = _find_plan(module)
    if isinstance(how, adapters.Plan):
        adapters.take(module, how)
    elif how is not None:
        _turn_into(module, how)


# --- which are taken, and as what ------------------------------------------------------------------------------------


def _swap_running(stock: Any, kind: type) -> nn.Module:
    made = _RANKED.get(kind, kind if issubclass(kind, Norm) else BatchNorm)
    return made(stock.num_features, stock.eps, stock.momentum, stock.affine, stock.track_running_stats, device="meta")


def _group(stock: Any, kind: type) -> nn.Module:
    return GroupNorm(stock.num_groups, stock.num_channels, stock.eps, stock.affine, device="meta")


def _channels(stock: Any, kind: type) -> nn.Module:
    return ChannelNorm(stock.normalized_shape[0], stock.eps, stock.elementwise_affine, device="meta")


def _layer(stock: Any, kind: type) -> nn.Module:
    return LayerNorm(stock.normalized_shape, stock.eps, stock.elementwise_affine, device="meta")


def _rms(stock: Any, kind: type) -> nn.Module:
    return RMSNorm(stock.normalized_shape, stock.eps, stock.elementwise_affine, device="meta")


_RANKED: dict[type, Callable[..., nn.Module]] = {
    nn.BatchNorm1d: ranked.BatchNorm1d,
    nn.BatchNorm2d: ranked.BatchNorm2d,
    nn.BatchNorm3d: ranked.BatchNorm3d,
    nn.InstanceNorm1d: ranked.InstanceNorm1d,
    nn.InstanceNorm2d: ranked.InstanceNorm2d,
    nn.InstanceNorm3d: ranked.InstanceNorm3d,
}
_LIKE: dict[type, Callable[[Any, type], nn.Module]] = {
    BatchNormBase: _swap_running,
    InstanceNormBase: _swap_running,
    nn.GroupNorm: _group,
    ChannelNorm: _channels,
    nn.LayerNorm: _layer,
    nn.RMSNorm: _rms,
}
_STOCK = (*_RANKED, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_ADAPTERS: dict[type, Adapter] = {}
for _class in _STOCK:
    register_adapter(_class, _class)

_BASES: dict[type, str] = {BatchNormBase: "batch", nn.GroupNorm: "group", nn.LayerNorm: "layer", nn.RMSNorm: "rms"}
_NORMS = (NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_OPTIONAL = {"weight", "bias", "num_batches_tracked"}  # what our layers can do without
_POOLED = "its statistics are pooled over processes: normlab.layers.distributed.synchronize does that for ours"
_LIBRARIES = {"timm", "torchvision", "transformers", "diffusers", "detectron2", "fvcore", "mmcv", "mmengine", "mmdet"}


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer by its class, or by its name and having no parts that learn."""
    kind = adapters.own_class(module)
    if kind in _ADAPTERS or isinstance(module, _NORMS):
        return True
    name = kind.__name__
    if kind.__module__.startswith("torch.") or not _sounds_like_a_norm(name):
        return name in ("LocalResponseNorm", "CrossMapLRN2d")
    parts = (part for part in module.children() if part is not getattr(module, "parametrizations", None))
    return not any(True for part in parts for _ in (*part.parameters(), *part.buffers()))


def _sounds_like_a_norm(name: str) -> bool:
    return "norm" in name.lower() or _ABBREVIATION.search(name) is not None


_ABBREVIATION = re.compile(r"(^|[a-z0-9_])(RMS|LN|BN|GN|IN|GRN|FRN|ABN)([123]d)?$")  # the last word of a class's name


def _find_plan(module: nn.Module) -> tuple[adapters.Plan | nn.Module | None, str | None]:
    """(how to take a layer, None), or (None, why not)."""
    kind = adapters.own_class(module)
    if "_stays" in vars(module):
        return None, vars(module)["_stays"]
    if "forward" in vars(module):
        return None, "its forward method was replaced on the object, which a class cannot undo; swap before"
    if kind in _ADAPTERS:
        return _adapt(module)
    why = _special(module)
    if why is not None:
        return None, why
    plan = adapters.probed(module)
    if isinstance(plan, str):
        return None, plan
    base = next((base for base in _BASES if isinstance(module, base)), None)
    is_known = kind.__module__.split(".")[0] in _LIBRARIES
    if base is not None and not is_known and plan.kind == _BASES[base] and not plan.behind and not plan.one_plus:
        return None, (
            f"a subclass of {base.__name__.lstrip('_')}, which may do more than its base; "
            f"normlab.register_adapter({kind.__name__}, ...) takes it"
        )
    return plan, None


def _adapt(module: nn.Module) -> tuple[nn.Module | None, str | None]:
    kind = adapters.own_class(module)
    try:
        ours: Any = _ADAPTERS[kind](module)
    except Exception as error:  # the function may be anybody's
        return None, f"its adapter failed ({type(error).__name__}: {error})"
    if ours is None:
        return None, "its adapter leaves it alone"
    if not isinstance(ours, (Norm, LayerNorm, RMSNorm)):
        what = ours.__name__ if isinstance(ours, type) else type(ours).__name__
        return None, f"its adapter returned {what}, which is no layer of normlab.layers"
    why = None if kind in _STOCK else _mismatch(module, ours)  # torch's own reads no other parameters
    return (ours, None) if why is None else (None, why)


def _mismatch(module: nn.Module, ours: nn.Module) -> str | None:
    """Why the parameters and buffers of a layer cannot take the place of those of ours."""
    held = zip(("parameters", "buffers"), adapters.in_effect(module), adapters.in_effect(ours), strict=True)
    for what, theirs, made in held:
        has, needs = ({k: v for k, v in kind.items() if v is not None} for kind in (theirs, made))
        for name in has.keys() & needs.keys():
            if has[name].shape != needs[name].shape:
                return f"its {name} has shape {tuple(has[name].shape)}, that of ours {tuple(needs[name].shape)}"
        unknown = has.keys() - made.keys() if what == "parameters" else set()
        missing = {k for k, v in needs.items() if what == "parameters" or v.is_meta} - has.keys() - _OPTIONAL
        if unknown or missing:
            names = (", ".join(sorted(kind)) or "none" for kind in (has, needs))
            return f"its {what} are {next(names)}, those of ours {next(names)}"
    return None


def _special(module: nn.Module) -> str | None:
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "it is lazy: run the model once, then swap"
    if type(module) is nn.SyncBatchNorm:
        return _POOLED
    if adapters.own_class(module).__module__.startswith("normlab."):
        return "it is normlab's own, which has no kernel and calls torch's functions"
    return None


def _turn_into(module: nn.Module, ours: nn.Module) -> None:
    """Turn a layer into one of the class of ours, with everything that it has."""
    tables = ("_parameters", "_buffers")
    missing = [(table, k, v) for table in tables for k, v in vars(ours)[table].items() if not hasattr(module, k)]
    added = {k: v for k, v in vars(ours).items() if k not in vars(module)}
    was = (adapters.own_class(module), tuple(added), tuple((table, name) for table, name, _ in missing))
    # what the layer has, its parameters and buffers among it, comes before what ours was made with
    vars(module).update(added, _was=was)
    for table, name, value in missing:  # a missing weight stays None; missing statistics start as ours do
        vars(module)[table][name] = None if value is None or value.is_meta or table == "_parameters" else value
    become(module, type(ours))


def turn_back(module: nn.Module) -> bool:
    """Give a layer that was taken its own class back, in place; whether it was one."""
    vars(module).pop("_stays", None)
    if isinstance(module, adapters.Taken):
        adapters.give_back(module)
        return True
    was = vars(module).pop("_was", None)
    if was is None:
        return False
    kind, added, missing = was
    for name in added:
        vars(module).pop(name, None)
    for table, name in missing:
        vars(module)[table].pop(name, None)
    become(module, kind)
    return True


def norms_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The normalization layers of a model, ours and others, by name."""
    for name, module in model.named_modules():
        if is_ours(module) or _is_norm(module):
            yield name, module
