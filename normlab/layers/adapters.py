"""Norms of other libraries: which of ours computes the same, found by what they do and not by what they are called.

`probed` runs a copy of an unknown layer on random inputs with random weights and compares its outputs, gradients and
dtypes with a few formulas. A layer that agrees with one can be *taken*: it becomes an object of a subclass of its own
class (`normlab.layers.recasting`) whose forward pass is ours. Its attributes are read at each call, and a call
that the formula was not compared for (other arguments, another rank, another mixture of dtypes) goes to the layer's own
forward pass. No library is imported here.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.kernels.activations import Activation
from normlab.layers import functional, gates
from normlab.layers._torch import BatchNormBase, NormBase
from normlab.layers.acting import activation_of, in_torch, is_passive
from normlab.layers.position_operators import normalize as normalize_positions
from normlab.layers.recasting import Recast, recast, undo, without_mixin


class Plan(NamedTuple):
    """How to compute what a layer computes."""

    kind: str  # of _KINDS
    eps: str | float | None = "eps"  # its attribute, or a constant; None: the machine epsilon
    one_plus: bool = False  # the factor is 1 + weight
    result: str = "input"  # dtype of the output: of "input" or "weight", "promoted" from both, "float32"; or "equal":
    # the same as both, which must not differ
    rank: int | None = None  # of the inputs that were compared, where others may be read in another way
    behind: tuple[str, ...] = ()  # its submodules that come after, in order
    evaluation: bool = False  # compared in evaluation mode only
    weighted: bool = True  # it reads the weight that it has
    gate: gates.Gate | None = None


class Taken(Recast):
    """Somebody's norm, computed by us; by its own forward pass where an attribute has made it something else since."""

    _plan: Plan | None
    _names: frozenset[str]  # of its attributes when it was taken: what a hook leaves on it later changes no result
    training: bool

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._names and (name not in _LIVE or value is None):
            _compare_again(self)  # type: ignore[arg-type]

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name in self._names:
            _compare_again(self)  # type: ignore[arg-type]

    def forward(
        self, *args: Any, residual: Tensor | None = None, act: Activation | None = None, **kwargs: Any
    ) -> Tensor:
        inside = takes_act_too(self)  # type: ignore[arg-type]
        gate = None if self._plan is None else self._plan.gate
        given = (*args, kwargs[gate.argument]) if gate is not None and kwargs.keys() == {gate.argument} else args
        if len(given) == len(args) + len(kwargs) and _serves(self, given):
            y = _apply_plan(self, given[0], residual if inside else None, act if inside else None, *given[1:])
            if inside:
                return y
        else:
            y = super().forward(*args, **kwargs)  # type: ignore[misc]
        y = y if residual is None else y + residual
        return y if act is None else in_torch(act)(y)


def take(layer: nn.Module, plan: Plan) -> None:
    """Compute somebody's norm from here on, in place."""
    names = frozenset(name for name in dir(layer) if not name.startswith("_"))
    recast(layer, Taken)
    vars(layer)["_plan"], vars(layer)["_names"] = plan, names


def give_back(layer: nn.Module) -> None:
    """Leave a layer that was taken to itself, in place."""
    undo(layer, Taken)
    for name in ("_plan", "_names"):
        vars(layer).pop(name, None)


def _compare_again(layer: nn.Module) -> None:
    """Find out what a taken layer computes now."""
    with without_mixin(layer, Taken):
        plan = probed(layer)
    vars(layer)["_plan"] = None if isinstance(plan, str) else plan


def went_its_own_way(layer: nn.Module) -> bool:
    """Whether a layer that was taken computes by itself since an attribute was set."""
    return isinstance(layer, Taken) and layer._plan is None


def takes_act_too(layer: nn.Module) -> bool:
    """Whether a taken layer can be made to apply an activation, and a residual before it."""
    return (
        isinstance(layer, Taken)
        and layer._plan is not None
        and layer._plan.kind in _FUSING
        and all(is_passive(getattr(layer, name)) for name in layer._plan.behind)
    )


def act_inside(layer: nn.Module) -> Activation | None:
    """The activation that a taken layer applies in its own pass over memory."""
    if not isinstance(layer, Taken) or layer._plan is None or layer._plan.kind not in _FUSING:
        return None
    behind = _parts_behind(layer)
    return activation_of(behind[0]) if len(behind) == 1 else None


def _serves(layer: Any, args: tuple[Any, ...]) -> bool:
    plan: Plan | None = layer._plan
    if plan is None or not gates.fits(plan.gate, args) or not isinstance(args[0], Tensor):
        return False
    x = args[0]
    if not x.is_floating_point() or x.dim() < 2 or (plan.rank is not None and x.dim() != plan.rank):
        return False
    weight, eps = getattr(layer, "weight", None) if plan.weighted else None, _eps(layer, plan, x)
    size = x.shape[-1 if plan.kind in _LAST else 1]
    names = ("bias", "running_mean", "running_var") if plan.kind in _RUNNING else ("bias",)
    if not (eps > 0 and _is_per_channel(weight, size)):
        return False
    if not all(_is_per_channel(getattr(layer, name, None), size) for name in names):
        return False
    if plan.kind in _FUSING and (x.numel() <= size or size % getattr(layer, "num_groups", 1)):
        return False
    if weight is not None and weight.dtype != x.dtype and (plan.result == "equal" or not _compared_mixture(x, weight)):
        return False
    if weight is None and plan.weighted and (_size(layer) or size) != size:
        return False
    return not (plan.evaluation and layer.training)


def _is_per_channel(v: Tensor | None, size: int) -> bool:
    """Whether it is nothing, or has one number for each channel."""
    return v is None or v.shape == (size,) or v.numel() == size == max(v.shape)


def _compared_mixture(x: Tensor, weight: Tensor) -> bool:
    """Whether one is of float32 and the other of half precision: such a mixture was compared, no other."""
    return {v.element_size() for v in (x, weight)} == {2, 4}


def _eps(layer: Any, plan: Plan, x: Tensor) -> float:
    eps: float | None = getattr(layer, plan.eps) if isinstance(plan.eps, str) else plan.eps
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if eps is None else eps


def _apply_plan(
    layer: Any, x: Tensor, residual: Tensor | None = None, act: Activation | None = None, gate: Tensor | None = None
) -> Tensor:
    plan: Plan = layer._plan
    behind = _parts_behind(layer)
    weight, bias = _vector(getattr(layer, "weight", None)), _vector(getattr(layer, "bias", None))
    weight = weight if plan.weighted else None
    dtype = _result(plan.result, x, weight)
    if plan.one_plus and weight is not None:
        weight = 1.0 + (weight.float() if weight.element_size() < 4 else weight)
    if dtype.itemsize > x.element_size():
        x = x.to(dtype)
    if plan.gate is not None and gate is not None:
        x, gate = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (x, gate))
        x = plan.gate.open(x, gate) if plan.gate.first else x
    eps = _eps(layer, plan, x)
    if plan.kind in _FUSING:
        if act is None and len(behind) == 1 and residual is None:
            act = activation_of(behind[0])
            behind = [] if act is not None else behind
        y = _KINDS[plan.kind](layer, x, weight, bias, eps, residual, act)
    else:
        y = _KINDS[plan.kind](x, weight, bias, eps)
    if plan.gate is not None and gate is not None and not plan.gate.first:
        y = plan.gate.open(y, gate)
    y = y if y.dtype is dtype else y.to(dtype)
    for module in behind:
        y = module(y)
    return y


def norm_of(layer: Any, x: Tensor) -> Tensor:
    """What a layer with one weight and bias per channel makes of x before what it applies behind the norm."""
    plan = probed(layer)
    if isinstance(plan, str):
        raise ValueError(plan)
    return _FUSING[plan.kind](layer, x, layer.weight, layer.bias, _eps(layer, plan, x), None, None)


def _vector(v: Tensor | None) -> Tensor | None:
    """A weight of shape (C,), which some hold as (C, 1, 1) or (1, 1, 1, C)."""
    return v if v is None or v.dim() == 1 else v.flatten()


def _parts_behind(layer: Any) -> list[nn.Module]:
    return [m for m in (getattr(layer, name) for name in layer._plan.behind) if not is_passive(m)]


def _result(rule: str, x: Tensor, weight: Tensor | None) -> torch.dtype:
    if rule == "float32":
        return torch.promote_types(torch.float32, x.dtype)
    if weight is None or rule in ("input", "equal"):
        return x.dtype
    return weight.dtype if rule == "weight" else torch.promote_types(x.dtype, weight.dtype)


# --- the formulas ----------------------------------------------------------------------------------------------------


def _named_parameters(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {k: v for k, v in (("weight", weight), ("bias", bias)) if v is not None}


def _batch(
    layer: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, act: Activation | None
) -> Tensor:
    layer._check_input_dim(x)
    tracked = layer.running_mean is not None
    update = layer.training and tracked and layer.track_running_stats
    use_batch, seen = layer.training or not tracked, layer.num_batches_tracked
    momentum = 0.0 if layer.momentum is None is seen else layer.momentum  # an average over nothing counted
    return functional.normalize(
        "bn", x, _named_parameters(weight, bias), running=(layer.running_mean, layer.running_var) if tracked else None,
        use_batch=use_batch, update=update, seen=seen, momentum=momentum, eps=eps,
        act=act, residual=residual,
    )  # fmt: skip


def _frozen(
    layer: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, act: Activation | None
) -> Tensor:
    return functional.normalize(
        "bn", x, _named_parameters(weight, bias), running=(layer.running_mean, layer.running_var), use_batch=False,
        eps=eps, act=act, residual=residual,
    )  # fmt: skip


def _group(
    layer: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, act: Activation | None
) -> Tensor:
    return functional.normalize(
        "gn",
        x,
        _named_parameters(weight, bias),
        options=(("groups", operator.index(layer.num_groups)),),
        eps=eps,
        act=act,
        residual=residual,
    )


def _last(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    return normalize_positions(x, weight, bias, x.shape[-1], eps, centred)


def _first(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    """Over the channels, dimension 1, as they lie in memory."""
    if not x.is_contiguous() and (last := x.movedim(1, -1)).is_contiguous():
        return _last(last, weight, bias, eps, centred).movedim(-1, 1)
    return normalize_positions(x, weight, bias, 0, eps, centred)


def _response(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return functional.normalize("grn", x, _named_parameters(weight, bias), eps=eps)


def _response_last(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return _response(x.movedim(-1, 1), weight, bias, eps).movedim(1, -1)


_FUSING: dict[str, Callable[..., Tensor]] = {"batch": _batch, "frozen": _frozen, "group": _group}
_RUNNING = ("batch", "frozen")
_LAST, _FIRST = ("layer", "rms", "responses, channels last"), ("channels", "rms over channels", "responses")
_KINDS: dict[str, Callable[..., Tensor]] = {
    **_FUSING,
    "layer": partial(_last, centred=True),
    "rms": partial(_last, centred=False),
    "channels": partial(_first, centred=True),
    "rms over channels": partial(_first, centred=False),
    "responses": _response,
    "responses, channels last": _response_last,
}


# --- which of them a layer is ----------------------------------------------------------------------------------------

_EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps", "layer_norm_eps", "layernorm_epsilon", "rms_norm_eps")
_SIZES = ("normalized_shape", "num_features", "num_channels", "hidden_size", "dim", "channels")
_LIVE = {  # attributes that are read at each call
    *_EPS, "forward", "training", "momentum", "track_running_stats", "num_groups", "weight", "bias", "running_mean",
    "running_var", "num_batches_tracked",
}  # fmt: skip
_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_MOST_FOUND = 4096
_found: dict[Any, Plan | str] = {}
_found_of: WeakKeyDictionary[nn.Module, tuple[Any, list[Any], Plan | str]] = WeakKeyDictionary()


def probed(layer: nn.Module) -> Plan | str:
    """How to compute what a layer computes, or why that cannot be determined.

    The result holds for every layer of the class with the same attributes and forms of parameters, and is kept; for
    this layer only, if it has attributes that may be anything, such as a configuration.
    """
    try:
        key, others = _key(layer)
        if not others:
            if key not in _found:
                if len(_found) >= _MOST_FOUND:
                    _found.clear()
                _found[key] = _probe(layer)
            return _found[key]
        kept = _found_of.get(layer)
        if kept is None or kept[0] != key or any(ref() is not v for ref, v in zip(kept[1], others, strict=True)):
            kept = key, [_reference(v) for v in others], _probe(layer)
            _found_of[layer] = kept
        return kept[2]
    except Exception as error:  # not kept: what is around the call may be to blame
        return f"it could not be run by itself ({type(error).__name__})"


def _reference(v: Any) -> Callable[[], Any]:
    """A function that returns the object while it is alive, or None for one that cannot be referred to weakly."""
    try:
        return weakref.ref(v)
    except TypeError:
        return lambda: None


def _probe(layer: nn.Module) -> Plan | str:
    with torch.random.fork_rng(devices=[]), _plain_surroundings():
        torch.manual_seed(0)
        return _probe_layer(layer)


@contextmanager
def _plain_surroundings() -> Iterator[None]:
    """Gradients, no autocast, and new tensors on the CPU, whatever is around."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        yield


def _key(layer: nn.Module) -> tuple[Any, list[Any]]:
    """A key that layers have in common if they compute the same, and those attributes that may be anything."""
    names = vars(layer).get("_names")  # of a layer that was taken
    own = {k: v for k, v in vars(layer).items() if k not in _TABLES and (names is None or k in names)}
    facts = {k: v if isinstance(v, _FACTS) else type(v) for k, v in own.items()}
    held = {k: v if v is None else tuple(v.shape) for kind in in_effect(layer) for k, v in kind.items()}
    parts = {k: (type(v), str(v)) for k, v in _parts(layer).items()}
    others = [v for v in own.values() if not isinstance(v, (*_FACTS, Tensor))]
    return (own_class(layer), repr(facts), repr(held), repr(parts)), others


_FACTS = (bool, int, float, complex, str, tuple, list, set, dict, type(None), torch.dtype, torch.device)
_TABLES = {*vars(nn.Module()), "_plan", "_names"}


def own_class(layer: nn.Module) -> type[nn.Module]:
    """The class that a layer was written as; torch derives another for a layer with parametrizations."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def in_effect(layer: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Parameters and buffers by the names that the layer's forward pass reads.

    A pruned layer computes its weight from `weight_orig` and `weight_mask`, a weight-normed one from `weight_g` and
    `weight_v`, a parametrized one from what `parametrizations.weight` holds.
    """
    names = vars(layer).get("_names")  # of a layer that was taken
    made = {k: v for k, v in vars(layer).items() if isinstance(v, Tensor) and (names is None or k in names)}
    if parametrize.is_parametrized(layer):
        made |= {name: getattr(layer, name) for name in layer.parametrizations}  # type: ignore[union-attr]

    def own(held: dict[str, Any]) -> dict[str, Tensor | None]:
        return {k: v for k, v in held.items() if not any(k.startswith(f"{name}_") for name in made)}

    return own(layer._parameters) | made, own(layer._buffers)


def _parts(layer: nn.Module) -> dict[str, nn.Module | None]:
    is_own = own_class(layer) is type(layer)
    return {k: v for k, v in layer._modules.items() if is_own or k != "parametrizations"}


def _probe_layer(layer: nn.Module) -> Plan | str:
    parts = _parts(layer)
    inside = {f"{name}.{k}" for name, part in parts.items() if part is not None for k in part.state_dict()}
    own = {k for kind in in_effect(layer) for k, v in kind.items() if v is not None} | inside
    if own - _STATE:
        return f"it has parameters or buffers that no norm of ours has: {', '.join(sorted(own - _STATE))}"
    size = _size(layer)
    if size is None:
        if own:
            return "its weight is not one number per feature"
        size = 8  # whatever comes
    behind = tuple(name for name, part in parts.items() if part is not None)
    copied = _copied(layer)
    gate = gates.gate_of(copied)
    plans = list(_candidates(copied, behind))
    found = _first_alike(copied, plans, size)
    if gate is None:
        return found
    if isinstance(found, str):  # it may be called with a gate only
        always = gate._replace(required=True)
        return _first_alike(copied, (gated for plan in plans for gated in _gated(plan, always)), size)
    with_gate = _first_alike(copied, _gated(found, gate), size)
    return found if isinstance(with_gate, str) else with_gate  # a call with a gate is another thing then


def _gated(plan: Plan, gate: gates.Gate) -> Iterator[Plan]:
    return (plan._replace(gate=kind) for kind in gates.kinds(gate))


def _first_alike(layer: nn.Module, plans: Iterable[Plan], size: int) -> Plan | str:
    """The first plan that computes what a layer does, or why none."""
    failures: list[str] = []
    for plan in plans:
        try:
            found = _compared(layer, plan, size)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            found = f"it could not be run by itself ({type(error).__name__}: {str(error).split(chr(10))[0]})"
        if isinstance(found, Plan):
            return found
        failures.append(found)
    differs = [f for f in failures if f == _DIFFERS] or failures
    return differs[0] if differs else "it is like no norm of ours"


def _size(layer: Any) -> int | None:
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        return weight.numel() if weight.dim() > 0 and weight.numel() == max(weight.shape) else None
    for name in _SIZES:
        value = getattr(layer, name, None)
        value = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
        if isinstance(value, int):
            return value
    return None


def _copied(layer: nn.Module) -> nn.Module:
    """A layer of the same class on the CPU, in float32, with random parameters and no hooks."""
    fresh: nn.Module = object.__new__(own_class(layer))
    for name, held in vars(layer).items():
        is_table = isinstance(held, dict) and (
            name.endswith("_hooks") or name in ("_parameters", "_buffers", "_modules")
        )
        vars(fresh)[name] = type(held)() if is_table else _as_it_is(held)
    parameters, buffers = in_effect(layer)
    for name, p in parameters.items():
        vars(fresh).pop(name, None)
        drawn = None if p is None else nn.Parameter(torch.empty(p.shape).uniform_(0.5, 1.5), p.requires_grad)
        fresh._parameters[name] = drawn
    for name, b in buffers.items():
        zeros = None if b is None else torch.zeros(b.shape, dtype=torch.float32 if b.is_floating_point() else b.dtype)
        fresh._buffers[name] = zeros if zeros is None or not zeros.is_floating_point() else zeros.uniform_(0.5, 1.5)
    for name, part in _parts(layer).items():
        fresh._modules[name] = copy.deepcopy(part)
    return fresh


def _candidates(layer: Any, behind: tuple[str, ...]) -> Iterator[Plan]:
    names = [n for n in _EPS if isinstance(getattr(layer, n, None), float)]
    known: list[str | float | None] = [*names, *(getattr(layer, n) for n in names)]  # some are not read any more
    for eps in known or [None, 1e-5, 1e-6, 1e-8, 1e-12]:
        if isinstance(layer, nn.SyncBatchNorm):
            yield Plan("batch", eps, rank=4, behind=behind, evaluation=True)
        elif isinstance(layer, BatchNormBase):
            yield Plan("batch", eps, rank=4, behind=behind)
        elif getattr(layer, "running_mean", None) is not None:
            yield Plan("frozen", eps, rank=4, behind=behind)
        elif isinstance(getattr(layer, "num_groups", None), int):
            yield Plan("group", eps, rank=4, behind=behind)
        elif not isinstance(layer, NormBase):
            weight = getattr(layer, "weight", None)
            kinds, ranks = [*_FIRST, *_LAST], [4]
            if weight is None or weight.dim() == 1:
                for kind in ("rms", "layer"):
                    yield Plan(kind, eps, behind=behind)
                    yield Plan(kind, eps, one_plus=True, behind=behind)
                    if weight is not None:
                        yield Plan(kind, eps, behind=behind, weighted=False)
                yield Plan("rms", eps, rank=3, behind=behind)
            else:  # it lies along one dimension of some rank
                ranks = [weight.dim() + 1, weight.dim()]
            for kind in kinds:
                for rank in ranks:
                    yield Plan(kind, eps, rank=rank, behind=behind)


def _compared(layer: Any, plan: Plan, size: int) -> Plan | str:
    """The plan with its rule for dtypes, or where it and the layer differ."""
    if plan.one_plus and getattr(layer, "weight", None) is None:
        return _DIFFERS
    small = _eps(layer, plan, torch.empty(0)) ** 0.5  # where eps counts
    for training in (False,) if plan.evaluation else (False, True):
        layer.train(training)
        for shape in _shapes(plan, size):
            for scale in (1.0, small, 1e3):
                x = torch.randn(shape) * scale + 0.3 * scale
                if not _agree(layer, plan, x, *([] if plan.gate is None else [torch.randn(shape)])):
                    return _DIFFERS
    layer.eval()
    given = [torch.randn(_shapes(plan, size)[0]) for _ in range(1 if plan.gate is None else 2)]
    if not _agree_on_nan(layer, plan, *given):
        return _DIFFERS
    if isinstance(plan.eps, str) and not _reads(layer, plan, plan.eps, given):
        return _DIFFERS
    result = _rule(layer, size, plan)
    return (
        "what it computes in half precision follows no rule of ours" if result is None else plan._replace(result=result)
    )


def _agree_on_nan(layer: Any, plan: Plan, x: Tensor, *gate: Tensor) -> bool:
    """Whether what is no number stays none, at the same places."""
    x = x.clone()
    x.view(-1)[0] = torch.nan
    with torch.no_grad():
        return torch.equal(layer.forward(x, *gate).isnan(), _apply_with(plan, layer, x, *gate).isnan())


def _reads(layer: Any, plan: Plan, name: str, given: list[Tensor]) -> bool:
    """Whether a layer goes by what this attribute is when it is called."""
    kept = getattr(layer, name)
    try:
        setattr(layer, name, 1.0 + kept)
    except AttributeError:  # a property that returns another attribute
        return False
    try:
        return _agree(layer, plan, *given)
    finally:
        setattr(layer, name, kept)


def _shapes(plan: Plan, size: int) -> list[tuple[int, ...]]:
    """Of the inputs that a plan is compared on."""
    if plan.rank is None:
        return [(2, 5, size), (3, size), (2, 3, 4, size)]
    more = (3, 4, 2)[: plan.rank - 2]
    return [(2, *more, size) if plan.kind in _LAST else (2, size, *more)]


_DIFFERS = "on random inputs it computes something else than the norms known here"


def _agree(layer: Any, plan: Plan, *given: Tensor) -> bool:
    theirs, ours = (_state(layer, given, run) for run in (_own_forward, partial(_apply_with, plan)))
    return (
        isinstance(theirs, list)
        and isinstance(ours, list)
        and len(theirs) == len(ours)
        and all(
            a is b
            if a is None or b is None
            else a.shape == b.shape and torch.allclose(a, b, rtol=2e-4, atol=2e-5 * (1 + float(b.abs().max())))
            for a, b in zip(ours, theirs, strict=True)
        )
    )


def _as_it_is(v: Any) -> Any:
    """A value that stays so, even if it is a list that somebody appends to."""
    return copy.copy(v) if isinstance(v, list | dict | set) else v


def _own_forward(layer: Any, *given: Tensor) -> Any:
    return layer.forward(*given)


def _apply_with(plan: Plan, layer: Any, x: Tensor, gate: Tensor | None = None) -> Tensor:
    vars(layer)["_plan"] = plan
    try:
        return _apply_plan(layer, x, gate=gate)
    finally:
        del vars(layer)["_plan"]


def _state(layer: Any, given: tuple[Tensor, ...], run: Callable[..., Any]) -> Any:
    """Output, gradients and buffers afterwards, of a layer that is left as it was; a reason if it has none.

    The gradient of a parameter that is not read is None.
    """
    buffers = {k: None if v is None else v.clone() for k, v in layer._buffers.items()}
    plain = {k: _as_it_is(v) for k, v in vars(layer).items() if not k.startswith("_")}
    given = tuple(v.clone().requires_grad_() for v in given)
    try:
        torch.manual_seed(1)
        y = run(layer, *given)
        if not isinstance(y, Tensor) or not y.requires_grad or y.shape != given[0].shape:
            return _DIFFERS
        learned = [p for p in layer._parameters.values() if p is not None and p.requires_grad]
        grads = torch.autograd.grad(y, [*given, *learned], torch.randn(y.shape).to(y.dtype), allow_unused=True)
        is_same = {k: v for k, v in vars(layer).items() if not k.startswith("_")} == plain
        if not is_same or any(g is None for g in grads[: len(given)]):
            return _DIFFERS
        return [y.detach(), *grads, *(v.clone().float() for v in layer._buffers.values() if v is not None)]
    finally:
        layer._buffers.update(buffers)


def _rule(layer: nn.Module, size: int, plan: Plan) -> str | None:
    """The dtype of a layer's output, by those of its input and weight."""
    shape = _shapes(plan, size)[0]
    seen: dict[tuple[torch.dtype, torch.dtype], torch.dtype] = {}
    calls: list[tuple[nn.Module, list[Tensor], Tensor]] = []
    for held in (torch.float32, torch.bfloat16):
        cast = copy.deepcopy(layer).to(held)
        for given in (torch.float32, torch.bfloat16):
            try:
                x = [torch.randn(shape).to(given)] * (2 if plan.gate is not None and plan.gate.required else 1)
                with torch.no_grad():
                    y = cast.forward(*x)
                seen[given, held] = y.dtype
                calls.append((cast, x, y))
            except (RuntimeError, ValueError, TypeError):
                continue
    mixed = any(given != held for given, held in seen)
    rules: dict[str, Callable[[torch.dtype, torch.dtype], torch.dtype]] = {
        "input": lambda x, w: x,
        "promoted": torch.promote_types,
        "weight": lambda x, w: w,
        "float32": lambda x, w: torch.float32,
    }
    for name, rule in rules.items():
        if seen and all(rule(*dtypes) == got for dtypes, got in seen.items()):
            result = name if mixed or name == "float32" else "equal"
            return result if all(_agree_roughly(plan._replace(result=result), *call) for call in calls) else None
    return None


def _agree_roughly(plan: Plan, layer: nn.Module, x: list[Tensor], y: Tensor) -> bool:
    """Whether ours is y, but for how half precision rounds."""
    with torch.no_grad():
        return torch.allclose(_apply_with(plan, layer, *x).float(), y.float(), 0.1, 0.1)
