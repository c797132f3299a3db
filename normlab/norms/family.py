"""The family: one entry per normalization, with its formula, its paper and its grid function.

A grid function takes the moments of the planes, `m`, the learned parameters, `p` (one row per channel, and
`p.eps`), and its options; it returns the `Affine` map of each plane. What it pools is what it is. Nothing
else is needed for kernels, gradients, the layers, the comparison and the command line to serve it.

What does not fit, because it has statistics per position, and a weight and bias for each element that they are taken
over, not for each plane: the layer and RMS norm of transformers over the last dimension, and ConvNeXt's norm over the
channels. They have kernels of their own (`normlab.kernels.positions`) and are `normlab.layers.LayerNorm`, `RMSNorm` and
`ChannelNorm`. Norms without statistics (EvoNorm, dynamic tanh) are element-wise modules.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any

from normlab.errors import UsageError
from normlab.norms.grid import Affine, Moments, rsqrt, standardize

GridFunction = Callable[..., Affine]


@dataclass(frozen=True)
class Learned:
    """A learned parameter: its initial value, and how an optimizer should treat it.

    One number per channel, or with `per_channel=False` one for the layer. `initial` is a number, or a function
    `(channels, **options)` that returns one for each channel. `bounds` are enforced after each optimizer step
    (`normlab.layers.constrain`); `lr_scale` multiplies the learning rate; `decay` says whether weight decay applies.
    With `trained=False` it is a constant of the layer, which no optimizer sees and no `state_dict` keeps.
    """

    initial: float | Callable[..., Sequence[float]]
    per_channel: bool = True
    bounds: tuple[float, float] | None = None
    lr_scale: float = 1.0
    decay: bool = True
    trained: bool = True

    def values(self, channels: int, options: Mapping[str, Any]) -> list[float]:
        """The initial value: one number per channel, or one for the layer."""
        if callable(self.initial):
            return [float(v) for v in self.initial(channels, **options)]
        return [self.initial] * (channels if self.per_channel else 1)


@dataclass(frozen=True, eq=False)
class NormEntry:
    """One norm: either a grid function or, for a layer that is not of this family, a module factory.

    The factory may be given by its name, "package.module:name", so that nothing is imported before it is needed. What a
    layer, a chart or a benchmark needs of a norm is a field of its entry:

    - `running`: a pooling over the samples is replaced by running statistics in evaluation; `per_channel`: nothing
      else is pooled, so that samples may be laid end to end;
    - `in_evaluation`: the norm that it is in evaluation where running statistics are asked for; it then averages the
      statistics of the instances;
    - `instances`: it takes statistics of single planes, which need more than one element;
    - `takes_over`: with a batch norm's weight, bias and running statistics it starts as that batch norm, in evaluation;
    - `eps`: the number added to the variance unless a layer is given another;
    - `layer`: the class that wears it, "package.module:name", or None for a general one;
    - `stock`: the layer that computes the same, "package.module:name", to time it beside; `{d}` stands for the number
      of spatial dimensions;
    - `plain`: the function of torch's operators that computes it, "package.module:name";
    - `hue` and `dash`: the colour and the dash of its curves, by number; None for the next that is free;
    - `compared`: whether a study takes it where no norms are named;
    - `when`: when to use it, what it costs and what its paper claims, in a paragraph;
    - `aliases`: other names that it is found by, unless a norm is registered under them;
    - `of_weights`: of a norm that normalizes weights (`normlab.layers.weights`) and no activations: the function,
      "package.module:name", that has a layer do so; it is put after another norm's name, as in "gn+ws";
    - `given`: what its layer needs to be called with beside x ("condition"), or to be built with beside the
      number of channels ("size"), or None: a network whose blocks call norms with x alone can take it;
    - `behind_addition_of`: of a norm that stands behind the additions that end the first stages of a residual network:
      the norm that is everywhere else in it;
    - `usual`: of norms that do equally well, which to prefer: the smaller, the more frameworks and trained networks
      have it; `cost`: the time of a training step with it, relative to batch norm, where that was not measured;
      `batchwise`: what it does to an image in training depends on the others of the batch, as grid functions with
      `running` statistics do unless it is said of them that they do not.
    """

    name: str
    title: str
    formula: str
    paper: str
    grid: GridFunction | None = None
    module: Callable[..., Any] | str | None = None
    parameters: Mapping[str, Learned] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    running: bool = False
    per_channel: bool = False
    in_evaluation: str | None = None
    instances: bool = False
    takes_over: bool = False
    eps: float = 1e-5
    layer: str | None = None
    stock: str | None = None
    plain: str | None = None
    hue: int | None = None
    dash: int | None = None
    compared: bool = False
    when: str = ""
    aliases: tuple[str, ...] = ()
    of_weights: str | None = None
    given: str | None = None
    behind_addition_of: str | None = None
    usual: int = 9
    cost: float = 1.2
    batchwise: bool = False


AFFINE = MappingProxyType({"weight": Learned(1.0), "bias": Learned(0.0)})
CALIBRATED = "calibrated"  # after a norm's name: matched to the norms of the network that it is put into
_REGISTRY: dict[str, NormEntry] = {}


def register_norm(
    name: str,
    *,
    title: str = "",
    formula: str = "",
    paper: str = "",
    parameters: Mapping[str, float | Learned] = MappingProxyType({}),
    affine: bool = True,
    running: bool = False,
    per_channel: bool = False,
    batchwise: bool | None = None,
    **fields: Any,
) -> Callable[[Any], Any]:
    """Decorator that adds a norm to the family, under `name`, everywhere: `make_norm`, comparison, command line.

    On a function, `grid(m, p, **options) -> Affine`, the norm gets kernels and gradients from it; options are
    its keyword arguments with their defaults (a default that is a function of the number of channels is called
    with it). On a class (or any factory called `module(channels, **options)`) the norm is that module.

    `parameters` maps names to initial values or `Learned`; they are added to a weight that starts at 1 and a bias that
    starts at 0, unless `affine=False`. `running` says that pooling over "n" is replaced by running statistics in
    evaluation; `per_channel` that nothing but pooling over "n" is done, so that samples may be laid end to end. Other
    fields are those of `NormEntry`. Raises ValueError if the name is taken or not of letters, digits and hyphens.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"register_norm: name={name!r}; expected letters, digits, '-' and '_' only")
    if name in _REGISTRY:
        raise ValueError(f"register_norm: the name {name!r} is taken by {_REGISTRY[name].title!r}; choose another")

    def add(target: Any) -> Any:
        is_grid = inspect.isfunction(target) and _takes_moments(target)
        learned = {**(AFFINE if affine and is_grid else {}), **parameters}
        _REGISTRY[name] = NormEntry(
            name=name,
            title=title or name,
            formula=formula or inspect.getdoc(target) or "",
            paper=paper,
            grid=target if is_grid else None,
            module=None if is_grid else target,
            parameters={k: v if isinstance(v, Learned) else Learned(float(v)) for k, v in learned.items()},
            options=_options(target) if is_grid else {},
            running=running,
            per_channel=per_channel,
            batchwise=(is_grid and running) if batchwise is None else batchwise,
            **fields,
        )
        return target

    return add


def norm_names() -> tuple[str, ...]:
    """Names of all registered norms, the built-in ones first."""
    return tuple(_REGISTRY)


def describe(name: str) -> NormEntry:
    """The entry of a norm, by its name or another one; raises UsageError naming the ones that exist."""
    found = _find(name)
    if found is None:
        raise UsageError(
            f"norm {name!r} is not known; expected one of: {', '.join(_REGISTRY)}; or one of your own, "
            "whose module --plugin names where a command takes it (in Python: which is imported first)"
        )
    return found


def _find(name: str) -> NormEntry | None:
    return _REGISTRY.get(name) or next((e for e in _REGISTRY.values() if name in e.aliases), None)


def is_registered(target: Any) -> bool:
    """Whether a function or class is the norm of an entry."""
    return any(target in (entry.grid, entry.module) for entry in _REGISTRY.values())


def parse(spec: str) -> tuple[NormEntry, dict[str, Any]]:
    """Split "gn:groups=8" into the entry of "gn" and {"groups": 8}; raises UsageError on anything else.

    What "gn:groups=8+ws" says of weights is left to `weights_of`, and "gn:calibrated" to `uncalibrated`.
    """
    if not isinstance(spec, str):
        raise UsageError(f"norm {spec!r}: expected a name, as 'bn' or 'gn:groups=8'")
    weights_of(spec)
    name, _, rest = _without_weights(spec).partition(":")
    entry = describe(name)
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(":")):
        if item == CALIBRATED:
            continue
        key, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"norm {spec!r}: {item!r} is not of the form name=value, as in 'gn:groups=8'")
        options[key] = _value(text)
    return entry, options


def uncalibrated(spec: str) -> str | None:
    """The norm that "gn:calibrated" puts in the place of a network's own, calibrated; None of any other name.

    Of groups, where their number is not given, it is one: few large groups keep most of a trained network.
    """
    name, *options = spec.strip().split(":")
    if CALIBRATED not in options:
        return None
    options.remove(CALIBRATED)
    entry, given = parse(spec)
    if "groups" in entry.options and "groups" not in given:
        options.append("groups=1")
    return ":".join([name, *options])


def weights_of(spec: str) -> str | None:
    """How a norm's name says that weights are normalized: "ws" of "gn+ws" and of "ws", None of "gn".

    Raises UsageError if what is after the plus is no norm of weights.
    """
    name = spec.strip().rpartition("+")[2]
    if spec.strip() == _without_weights(spec):
        found = _find(name)
        return found.name if found is not None and found.of_weights else None
    entry = describe(name)
    if not entry.of_weights:
        known = ", ".join(e.name for e in _REGISTRY.values() if e.of_weights)
        raise UsageError(f"norm {spec!r}: {name!r} is no norm of weights; expected one of: {known}")
    return entry.name


def _without_weights(spec: str) -> str:
    before, plus, after = spec.strip().rpartition("+")
    return before if plus and not after[:1].isdigit() else spec.strip()  # 1e+5 is a number


def resolve_options(entry: NormEntry, channels: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a norm for this many channels: the given ones over the defaults."""
    unknown = set(given) - set(entry.options)
    if unknown:
        known = ", ".join(entry.options) or "none"
        raise UsageError(f"norm {entry.name!r} has no option {sorted(unknown)[0]!r}; its options: {known}")
    defaults = {k: v(channels) if callable(v) else v for k, v in entry.options.items()}
    return {**defaults, **{name: _as_whole(entry, name, v, defaults[name]) for name, v in given.items()}}


def _as_whole(entry: NormEntry, name: str, value: Any, usual: Any) -> Any:
    """An option's value; a Python int where the usual one is: 2.0 equals 2, and would be found in its place later."""
    if type(usual) is not int or type(value) is int:
        return value
    if not hasattr(value, "__index__"):
        raise UsageError(f"norm {entry.name!r}: {name}={value!r}; expected a whole number")
    return operator.index(value)


def default_groups(channels: int) -> int:
    """Groups of at least 4 channels, at most 32 of them, dividing the channels: channels / 4 in small networks."""
    most = max(1, min(32, channels // 4))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


def _takes_moments(function: Callable[..., Any]) -> bool:
    """A grid function has two positional arguments, (m, p); a module factory one, the number of channels."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(a.kind in kinds for a in inspect.signature(function).parameters.values()) == 2


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    arguments = inspect.signature(function).parameters.values()
    return {a.name: a.default for a in arguments if a.kind is inspect.Parameter.KEYWORD_ONLY}


# --- the family ------------------------------------------------------------------------------------------------


@register_norm(
    "bn",
    title="batch normalization",
    formula="y = weight * (x - mean_ns) / sqrt(var_ns + eps) + bias",
    paper="Ioffe & Szegedy 2015, arXiv:1502.03167",
    running=True,
    per_channel=True,
    takes_over=True,
    layer="normlab.layers.norms:BatchNorm",
    stock="torch.nn:BatchNorm{d}d",
    plain="normlab.layers.plain:batch_norm",
    hue=0,
    dash=0,
    compared=True,
    usual=0,
    cost=1.0,
)
def batch(m: Moments, p: SimpleNamespace) -> Affine:
    """Statistics of each channel over samples and positions; in evaluation, their running averages."""
    return standardize(m.pool("n"), p)


@register_norm(
    "in",
    title="instance normalization",
    formula="y = weight * (x - mean_s) / sqrt(var_s + eps) + bias",
    paper="Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
    instances=True,
    in_evaluation="bn",
    layer="normlab.layers.norms:InstanceNorm",
    stock="torch.nn:InstanceNorm{d}d",
    plain="normlab.layers.plain:instance_norm",
    hue=1,
    dash=1,
    compared=True,
    usual=4,
)
def instance(m: Moments, p: SimpleNamespace) -> Affine:
    """Statistics of each plane by itself: nothing is pooled."""
    return standardize(m, p)


@register_norm(
    "bin",
    title="batch-instance normalization",
    formula="y = weight * (rho * batch(x) + (1 - rho) * instance(x)) + bias, 0 <= rho <= 1",
    paper="Nam & Kim 2018, arXiv:1805.07925",
    parameters={"rho": Learned(1.0, bounds=(0.0, 1.0), lr_scale=10.0, decay=False)},
    instances=True,
    running=True,
    takes_over=True,
    layer="normlab.layers.norms:BatchInstanceNorm",
    stock="normlab.bench.sides:BatchInstance",
    hue=2,
    dash=2,
    usual=5,
    cost=1.25,
)
def batch_instance(m: Moments, p: SimpleNamespace) -> Affine:
    """Each channel's gate rho mixes the batch-normalized and the instance-normalized value."""
    mixed: Affine = p.rho * batch(m, p) + (1 - p.rho) * instance(m, p)
    return mixed


@register_norm(
    "ln",
    title="layer normalization",
    formula="y = weight * (x - mean_cs) / sqrt(var_cs + eps) + bias",
    paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450",
    stock="torch.nn:GroupNorm",
    plain="normlab.layers.plain:group_norm",
    hue=3,
    dash=3,
    compared=True,
    usual=3,
)
def layer(m: Moments, p: SimpleNamespace) -> Affine:
    """Statistics of each sample over all channels and positions; one weight and bias per channel."""
    return standardize(m.pool("c"), p)


@register_norm(
    "gn",
    title="group normalization",
    formula="y = weight * (x - mean_gs) / sqrt(var_gs + eps) + bias",
    paper="Wu & He 2018, arXiv:1803.08494",
    layer="normlab.layers.norms:GroupNorm",
    stock="torch.nn:GroupNorm",
    plain="normlab.layers.plain:group_norm",
    hue=4,
    dash=5,
    compared=True,
    usual=2,
)
def group(m: Moments, p: SimpleNamespace, *, groups: Any = default_groups) -> Affine:
    """Statistics of each sample over the channels of a group and all positions."""
    return standardize(m.pool("c", groups), p)


register_norm("none", title="no normalization", formula="y = x", hue=5, dash=4, compared=True, usual=6, cost=0.7)(
    "normlab.layers.norms:no_norm"
)
register_norm(
    "torch-bn",
    title="torch.nn.BatchNorm2d",
    formula="as bn",
    paper="the stock layer, a sanity check",
    hue=6,
    dash=6,
    usual=1,
    cost=1.0,
    batchwise=True,
)("torch.nn:BatchNorm2d")


@register_norm(
    "rms",
    title="root-mean-square normalization",
    formula="y = weight * x / sqrt(mean_cs(x^2) + eps) + bias",
    paper="Zhang & Sennrich 2019, arXiv:1910.07467",
    hue=7,
    dash=1,
)
def root_mean_square(m: Moments, p: SimpleNamespace) -> Affine:
    """Each sample divided by the root mean square over all channels and positions; nothing is subtracted."""
    pooled = m.pool("c")
    return Affine(p.weight * rsqrt(pooled.var + pooled.mean * pooled.mean + p.eps), 0.0, p.bias)


@register_norm(
    "frn",
    title="filter response normalization",
    formula="y = weight * x / sqrt(mean_s(x^2) + eps) + bias",
    paper="Singh & Krishnan 2020, arXiv:1911.09737; without its thresholded activation, see frn-tlu",
    eps=1e-6,
    hue=8,
    dash=2,
)
def filter_response(m: Moments, p: SimpleNamespace) -> Affine:
    """Each plane divided by its own root mean square; nothing is subtracted or pooled."""
    return Affine(p.weight * rsqrt(m.var + m.mean * m.mean + p.eps), 0.0, p.bias)


def _value(text: str) -> float | bool | str | None:
    """What an option's text says: a number, true, false or none, or a word."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_WORDS = {"true": True, "false": False, "none": None}
