"""Another kind of norm in the place of the old one, in a network that goes on working.

Replacing the norms of a trained network by name destroys it: what its layers expect are the means and deviations of the
old norm's outputs. `convert` sets weight and bias of every new norm so that each channel has them again, from a few
images without labels. It goes from the input to the output, so that a layer is matched on what it will really be given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers import adapters, checks
from normlab.layers._torch import BatchNormBase, InstanceNormBase
from normlab.layers.acting import activation_of, is_passive
from normlab.layers.distilling import distill as distilled
from normlab.layers.images import Images, batches, given_to
from normlab.layers.modes import in_mode
from normlab.layers.norms import GroupNorm, Norm, RunningNorm, make_norm
from normlab.layers.restore import Followed
from normlab.layers.swap import norms_in, why_left
from normlab.norms import family

Model = TypeVar("Model", bound=nn.Module)

GROUPS = (1, 2, 4, 8, 16, 32)  # that are tried where the number is not given
MOST_ELEMENTS = 1 << 24  # of the images that the norms are matched on: one batch of them
_TINY = 1e-8
_CONVERTIBLE = (BatchNormBase, InstanceNormBase, nn.GroupNorm, Norm)  # one weight and bias per channel


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` made of a model, by the names of its layers.

    `changed` says what each layer is now, `left` which were left alone and why. `error` is how far the outputs are from
    the original network's on the images: their squared distance over the variance of the original's, 0 for the same
    outputs, 1 for none of their information. `tried` has it for every number of groups that was tried, and
    `undistilled` that before distillation.
    """

    to: str
    changed: dict[str, str]
    left: dict[str, str] = field(default_factory=dict)
    error: float | None = None
    tried: dict[str, float] = field(default_factory=dict)
    undistilled: float | None = None
    images: int = 0

    def __str__(self) -> str:
        are = "norm is" if len(self.changed) == 1 else "norms are"
        lines = [f"{len(self.changed)} {are} {self.to} now, {len(self.left)} left alone"]
        if self.error is not None:
            lines[0] += f"; the outputs' error is {self.error:.4f} on {self.images} images"
        if self.undistilled is not None:
            lines[0] += f" ({self.undistilled:.4f} before distillation)"
        lines += [f"  tried: {spec}: error {error:.4f}" for spec, error in self.tried.items()]
        lines += [f"  left: {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def convert(
    model: Model, to: str, calibrate: Images | None = None, *, match: bool = True, distill: int = 0, seed: int = 0
) -> Model:
    """Put another kind of norm into a trained network, in place, and return the network.

        normlab.convert(model, to="gn", calibrate=images)

    `to` is a norm of the family, as "gn:groups=2", "ln", "in", "frn"; for "gn" without a number of groups, those of 1
    to 32 are tried and the number is taken whose outputs are closest to the original's. `calibrate` are inputs as the
    model takes them, (N, C, H, W), or batches of them (with or without labels, which are not used); 32 to 512 serve.
    Each new norm gets the weight and bias

        weight = deviation of the old outputs / deviation of the normalized inputs, with the old weight's sign
        bias   = mean of the old outputs - weight * mean of the normalized inputs

    per channel, over all images and positions. "bin" takes over everything of a batch norm, and is exact. With
    `distill`, so many further steps train the whole network to repeat the original's outputs on these images.
    `match=False` takes over weight and bias as they are, which is what other converters do. Weight and bias stay the
    same `Parameter` objects where a layer had them, so an optimizer goes on. `convert_report(model)` says what was
    done, and `revert(model)` is the way back. If it fails or is interrupted, the model is as it was.

    Raises UsageError for a norm that has no weight and bias per channel, a model without norms, and images that are
    missing, not finite, or not taken by the model.
    """
    checks.module("convert", model)
    checks.whole("convert", "distill", distill)
    entry, _ = family.parse(to)
    if not _has_affine(entry):
        known = ", ".join(name for name in family.norm_names() if _has_affine(family.parse(name)[0]))
        raise UsageError(f"convert: to={to!r} has no weight and bias per channel; expected one of: {known}")
    if family.weights_of(to) is not None:
        raise UsageError(f"convert: to={to!r} normalizes weights too, which changes every convolution; leave that out")
    spots, left = _find_spots(model, "convert: this model has no norm that can be converted")
    exact = entry.takes_over and all(_is_batch(spot.old) for spot in spots)
    if calibrate is None and (distill or (match and not exact)):
        raise UsageError(f"convert: to={to!r} needs images: calibrate=..., 32 or more as the model takes them")
    images = None if calibrate is None else _batch(calibrate)
    before = copy.deepcopy(model) if distill else None
    tried: dict[str, float] = {}
    undistilled = None
    try:
        with in_mode(model, False):
            original = None if images is None else _Original.of(model, spots, images, match and not exact)
            specs = [to]
            if "groups" in entry.options and ":" not in to and original is not None and original.moments:
                specs = [f"{entry.name}:groups={groups}" for groups in GROUPS]
            failed: ValueError | None = None
            for spec in specs:
                try:
                    error = _fit(model, spots, spec, original)
                except ValueError as reason:
                    failed = reason
                    continue
                if error is not None:
                    tried[spec] = error
            if len(specs) > 1 and tried:
                to = min(tried, key=lambda spec: tried[spec])
                _fit(model, spots, to, original)
            elif failed is not None:
                raise failed
        error = tried.get(to)
        for spot in spots:
            if spot.new is not None:
                spot.new.train(spot.old.training)
        if before is not None and original is not None:
            undistilled = error
            distilled(
                model, before.eval(), original.images, [spot.names[0] for spot in spots], steps=distill, seed=seed
            )
            with in_mode(model, False):
                error = _error(_outputs(model, original.images), original.outputs)
    except BaseException:
        _restore_all(model, spots)
        if before is not None:
            model.load_state_dict(before.state_dict())
        raise
    changed = {spot.names[0]: str(spot.new) for spot in spots}
    report = ConvertReport(
        to, changed, left, error, tried if len(specs) > 1 else {}, undistilled, 0 if images is None else len(images)
    )
    _KEPT[model] = (report, spots)
    return model


def convert_report(model: nn.Module) -> ConvertReport:
    """What `convert` did to this model. Raises UsageError if it did nothing."""
    return _find_report(model, "convert_report")[0]


def revert(model: Model) -> Model:
    """Put the old norms back, with the parameters and statistics that they had, in place; returns the model.

    What is not a norm stays as it is, with whatever training or distillation has changed since. Raises UsageError if
    the model was not converted.
    """
    _, spots = _find_report(model, "revert")
    _restore_all(model, spots)
    for spot in spots:
        if spot.new is not None:
            spot.old.train(spot.new.training)
    del _KEPT[model]
    return model


def _has_affine(entry: family.NormEntry) -> bool:
    return entry.grid is not None and entry.parameters.keys() >= {"weight", "bias"}


def replace_norms(model: Model, to: str) -> Model:
    """Put new layers of a kind in the place of a model's norms, with weight and bias as the old ones had them.

    In place; returns the model. For training from there: nothing is matched (`convert` does that). `to` is any norm of
    `make_norm`, "none" too. Raises UsageError if the model has no norm that can be replaced.
    """
    spots, _ = _find_spots(model, f"this model has no norm that could be replaced by {to}")
    _install(model, spots, to)
    return model


@dataclass
class _Spot:
    """One norm of a model: where it is, what was there, and what is there now."""

    names: list[str]  # one module may be in several places
    old: nn.Module
    channels: int
    saved: dict[str, Tensor]  # its parameters and buffers as they were
    sign: Tensor
    new: nn.Module | None = None


_KEPT: WeakKeyDictionary[nn.Module, tuple[ConvertReport, list[_Spot]]] = WeakKeyDictionary()


def _find_report(model: nn.Module, asker: str) -> tuple[ConvertReport, list[_Spot]]:
    checks.module(asker, model)
    if model not in _KEPT:
        raise UsageError(f"{asker}: this model was not converted, or is a copy of one that was")
    return _KEPT[model]


def _find_spots(model: nn.Module, else_say: str) -> tuple[list[_Spot], dict[str, str]]:
    """The norms that can be converted, and why others cannot; raises UsageError where there are none."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    spots, left = [], {}
    for name, module in norms_in(model):
        why = _why_unfit(name, module)
        if why is not None:
            left[name] = why
            continue
        held = {
            name: v.detach().clone()
            for name, v in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        }
        weight = held.get("weight")
        channels: Any = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
        sign = torch.ones(channels) if weight is None else torch.where(weight < 0, -1.0, 1.0)
        spots.append(_Spot(places[id(module)], module, channels, held, sign))
    if not spots:
        raise UsageError(else_say + "".join(f"\n  {name or 'the model'}: {why}" for name, why in left.items()))
    return spots, left


def _why_unfit(name: str, module: nn.Module) -> str | None:
    if not name:
        return "it is the whole model; put it into a torch.nn.Sequential"
    if not isinstance(module, _CONVERTIBLE):
        return "it has a weight for each element and not for each channel"
    if isinstance(module, nn.SyncBatchNorm):
        return "its statistics are pooled over processes"
    behind = _parts_behind(module)
    if isinstance(behind, str):
        return behind
    if len(behind) > 1 or any(activation_of(part) is None for part in behind):
        return f"what it applies behind the norm is none of ours: {', '.join(map(str, behind))}"
    return None


def _is_foreign(layer: nn.Module) -> bool:
    """Whether a norm is another library's, which may do more than a norm."""
    return not isinstance(layer, (Norm, Followed)) and not type(layer).__module__.startswith("torch.nn")


def _place_of_act(layer: nn.Module) -> str | None:
    """The attribute that holds what a layer of ours, or one that took its place, applies behind the norm."""
    return "act" if isinstance(layer, Norm) else "_act" if isinstance(layer, Followed) else None


def _parts_behind(layer: Any) -> list[nn.Module] | str:
    """What a layer applies behind its norm by parts of its own; or why that is not known."""
    if not _is_foreign(layer):
        return []
    plan = adapters.probed(layer)
    if isinstance(plan, str):
        return why_left(layer) or plan
    return [part for name in plan.behind if not is_passive(part := getattr(layer, name))]


def _make_layer(spot: _Spot, spec: str) -> nn.Module:
    """The new layer for a spot, with the old one's parameters, statistics, activation and mode."""
    old: Any = spot.old
    behind: Any = _parts_behind(old)
    act = activation_of(behind[0]) if behind else None if (place := _place_of_act(old)) is None else getattr(old, place)
    like = next(iter((*old.parameters(), *old.buffers())), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        new: Any = make_norm(spec, spot.channels).to(like.device, like.dtype)
    if act is not None:
        if not isinstance(new, Norm):
            raise UsageError(f"{spot.names[0]} applies {act} itself, which {spec} cannot take over")
        new.act = act
    if isinstance(new, GroupNorm) and isinstance(old, nn.GroupNorm):
        new.eps = old.eps
    names = ["weight", "bias"]
    if isinstance(old, BatchNormBase) and isinstance(new, RunningNorm) and old.running_mean is not None:
        names += ["running_mean", "running_var", "num_batches_tracked"]
        new.eps, new.momentum = old.eps, old.momentum
    for name in names:
        _copy_state(name, spot, new)
    if "applies_relu" in vars(old):
        new.applies_relu = True
    made: nn.Module = new.train(old.training)
    return made


def _copy_state(name: str, spot: _Spot, new: nn.Module) -> None:
    """Give a new layer what the old one had under a name: the same parameter, or the numbers of a buffer."""
    value, made = spot.saved.get(name), getattr(new, name, None)
    if value is None or made is None:
        return
    kept = getattr(spot.old, name)
    with torch.no_grad():
        if isinstance(kept, nn.Parameter) and isinstance(made, nn.Parameter):
            kept.copy_(value)
            new.register_parameter(name, kept)
        else:
            made.copy_(value)


def _install(model: nn.Module, spots: list[_Spot], spec: str) -> None:
    """Put new layers into the spots, with weight and bias as the old ones had them."""
    specs = {spot.channels: _for_channels(spec, spot.channels) for spot in spots}
    for spot in spots:
        spot.new = _make_layer(spot, specs[spot.channels])
        _replace(model, spot, spot.new)


def _for_channels(spec: str, channels: int) -> str:
    """The spec for this many channels: of groups, as many as divide them."""
    entry, options = family.parse(spec)
    if "groups" not in options:
        return spec
    most = min(int(options["groups"]), channels)
    options["groups"] = next(g for g in range(most, 0, -1) if channels % g == 0)
    return ":".join([entry.name, *(f"{name}={value}" for name, value in options.items())])


def _replace(model: nn.Module, spot: _Spot, layer: nn.Module) -> None:
    for name in spot.names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def _restore_all(model: nn.Module, spots: list[_Spot]) -> None:
    for spot in spots:
        if spot.new is not None:
            like = next(iter((*spot.new.parameters(), *spot.new.buffers())), torch.empty(0))
            made_in = next(iter(spot.saved.values()), like).dtype
            spot.old.to(like.device, None if like.dtype == made_in else like.dtype)  # where the model has gone since
        with torch.no_grad():
            for name, value in spot.saved.items():
                getattr(spot.old, name).copy_(value)
        _replace(model, spot, spot.old)


def _is_batch(layer: nn.Module) -> bool:
    """Whether a layer is batch norm in evaluation."""
    if not isinstance(layer, BatchNormBase) or layer.running_mean is None:
        return False
    learned = layer.entry.parameters if isinstance(layer, Norm) else {}
    more = {name for name, p in learned.items() if p.trained} - {"weight", "bias"}
    return not isinstance(layer, Norm) or (layer.entry.takes_over and not more)


# --- measuring and matching ------------------------------------------------------------------------------------------

Moments = dict[str, tuple[Tensor, Tensor]]  # mean and deviation of each channel, by the norm's name


@dataclass
class _Original:
    """The images that a network is converted on, what it makes of them, and its norms' outputs if they are matched."""

    images: Tensor
    outputs: Tensor
    moments: Moments

    @classmethod
    def of(cls, model: nn.Module, spots: list[_Spot], images: Tensor, match: bool) -> _Original:
        with given_to(model, "convert", "the images"):
            outputs = _outputs(model, images)
        return cls(images, outputs, _record_moments(model, spots, images) if match else {})


def _fit(model: nn.Module, spots: list[_Spot], spec: str, original: _Original | None) -> float | None:
    """Put new layers in and match them; the error of the outputs, where there are images."""
    _install(model, spots, spec)
    if original is None:
        return None
    if original.moments:
        _match(model, spots, original.images, original.moments)
    return _error(_outputs(model, original.images), original.outputs)


def _record_moments(model: nn.Module, spots: list[_Spot], images: Tensor) -> Moments:
    """Mean and deviation of each channel of every norm's output, before its activation, by the norm's name."""
    found: Moments = {}

    def look(spot: _Spot) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.setdefault(spot.names[0], _moments(_bare(layer, inputs[0])))

        return hook

    _run_hooked(model, images, [(spot.old, look(spot)) for spot in spots])
    return found


def _match(model: nn.Module, spots: list[_Spot], images: Tensor, wanted: Moments) -> None:
    """Set weight and bias of each new norm when the images reach it: what comes before has been set by then."""
    done: set[int] = set()

    def fit(spot: _Spot) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Any, ...]) -> None:
            if id(layer) in done or spot.names[0] not in wanted:
                return
            done.add(id(layer))
            x = inputs[0]
            if isinstance(layer, RunningNorm) and layer.running_mean is not None and layer.running_var is not None:
                mean, deviation = _moments(x)
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(deviation.square())
            layer.weight.fill_(1)
            layer.bias.zero_()
            mean, deviation = _moments(_bare(layer, x))
            target_mean, target = wanted[spot.names[0]]
            weight = torch.where(deviation > _TINY, spot.sign.to(target) * target / deviation.clamp_min(_TINY), 0.0)
            layer.weight.copy_(weight)
            layer.bias.copy_(target_mean - weight * mean)

        return hook

    new = [(spot.new, fit(spot)) for spot in spots if spot.new is not None]
    _run_hooked(model, images, new)


def _run_hooked(model: nn.Module, images: Tensor, hooks: list[tuple[nn.Module, Callable[..., None]]]) -> None:
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def _bare(layer: Any, x: Tensor) -> Tensor:
    """What a norm makes of x, without the activation that it applies."""
    place = _place_of_act(layer)
    if place is not None:
        act = getattr(layer, place)
        setattr(layer, place, None)
        try:
            y: Tensor = layer.forward(x)
        finally:
            setattr(layer, place, act)
        return y
    return adapters.norm_of(layer, x) if _is_foreign(layer) else layer.forward(x)


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, float64 (C,)."""
    flat = y.movedim(1, 0).flatten(1)
    var, mean = torch.var_mean(flat.double(), 1, correction=0)
    return mean, var.sqrt()


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(images)
    if not isinstance(y, Tensor):
        raise UsageError(f"convert: the model returns {type(y).__name__}; expected a tensor")
    return y.flatten(1).double()


def _error(found: Tensor, expected: Tensor) -> float:
    """The squared distance of outputs from the expected ones, over the variance of those."""
    around = (expected - expected.mean(0)).square().sum().clamp_min(_TINY)
    error = float((found - expected).square().sum() / around)
    return error if error == error else float("inf")


def _batch(images: Images) -> Tensor:
    """One batch of images, as many as there is room for; labels beside them are left out."""
    parts: list[Tensor] = []
    count = 0
    for first in batches(images, "convert: calibrate"):
        parts.append(first)
        count += len(first)
        if first.numel() / max(1, len(first)) * count >= MOST_ELEMENTS:
            break
    if not count:
        raise UsageError("convert: calibrate is empty; expected 32 images or more, as the model takes them")
    whole = torch.cat(parts)
    if not bool(torch.isfinite(whole).all()):
        raise UsageError("convert: calibrate has numbers that are infinite or not a number")
    room = max(8, int(MOST_ELEMENTS // max(1, whole[0].numel())))
    return whole[:room]
