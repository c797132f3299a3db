"""The uniform face of a layer under test."""

from __future__ import annotations

import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# the roles that a parameter or argument can play, and the names that say so; others are found by their effect
ROLES = {
    "weight": ("weight", "gamma", "scale", "g", "w", "gain"),
    "bias": ("bias", "beta", "shift", "offset", "b"),
    "gate": ("rho", "gate", "mix"),
    "running_mean": ("mean", "input_mean"),
    "running_var": ("var", "input_var"),
    "channels": (
        *("num_features", "num_channels", "channels", "normalized_shape", "dim", "features", "n_features"),
        *("in_channels", "hidden_size", "c", "d", "size", "n_channels", "feature_dim", "d_model", "ndim"),
        *("embed_dim", "n_embd", "input_dim", "input_size", "input_shape", "shape", "in_features"),
    ),
    "groups": ("num_groups", "groups", "n_groups", "ngroups", "group"),
    "eps": ("eps", "epsilon", "variance_epsilon", "e"),
    "momentum": ("momentum", "decay", "mom"),
    "affine": ("affine", "elementwise_affine"),
    "track": ("track_running_stats", "track_stats"),
    "rank": ("num_dims", "n_dims", "dims", "ndims", "rank"),
    "training": (
        *("training", "train", "is_training", "training_mode", "mode", "use_input_stats"),
        *("train_flg", "train_flag", "is_train", "train_mode"),
    ),
}
_KEPT = r"(running|moving|run|mov|exp|ema|avg|average|global|pop|population|tracked|estimated)"
_MEAN, _VAR = r"(mean|mu|avg|average)s?", r"(var|variance|sigma2|sigma_sq)s?"
RUNNING_PATTERNS = {
    "running_mean": re.compile(rf"{_KEPT}_?{_MEAN}|{_MEAN}_?{_KEPT}"),
    "running_var": re.compile(rf"{_KEPT}_?{_VAR}|{_VAR}_?{_KEPT}"),
}
KIND_PATTERNS = (
    ("batch-instance", r"batch_?instance|(^|[^a-z])bin([^a-z]|$)"),
    ("rms", r"rms"),
    ("group", r"group|(^|[^a-z])gn([^a-z]|$)"),
    ("instance", r"instance|(^|[^a-z])in([^a-z]|$)"),
    ("layer", r"layer_?norm|layernormalization|(^|[^a-z])ln([^a-z]|$)|^layer"),
    ("batch", r"batch|(^|[^a-z])bn([^a-z]|$)"),
)


def role_of(name: str) -> str | None:
    """The role that a name plays, or None."""
    last = name.rsplit(".", 1)[-1]
    if last == "G":
        return "groups"
    short = last.lower().strip("_")
    for role, pattern in RUNNING_PATTERNS.items():
        if pattern.fullmatch(short):
            return role
    return next((role for role, names in ROLES.items() if short in names), None)


def kind_from_name(name: str) -> str | None:
    """The kind of normalization that a class's or function's name implies, or None."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    itself, *_ = re.split(r"_(?:via|by|using|through|from)_", spaced)  # one norm by means of another
    return next((kind for kind, pattern in KIND_PATTERNS if re.search(pattern, itself)), None)


class TargetFailure(Exception):
    """The layer under test raised, or returned something that is not an output: a finding, not an error of ours."""

    def __init__(self, message: str, original: BaseException | None = None) -> None:
        super().__init__(message)
        self.original = original


class Unsupported(Exception):
    """The target has no such feature (no backward pass, no option of that name): the check is skipped."""


@dataclass(frozen=True)
class Options:
    """How to build a layer: sizes, and what to ask for where the target takes it (None: its own default).

    `rank` is the inputs' number of axes, for layers that are built for one; `tail` a shape to normalize over;
    `track` whether running statistics are kept; `cumulative` asks for momentum=None, the average over all batches.
    """

    channels: int = 6
    groups: int = 3
    dtype: str = "float64"
    eps: float | None = None
    momentum: float | None = None
    affine: bool = True
    rank: int | None = None
    tail: tuple[int, ...] | None = None
    track: bool | None = None
    cumulative: bool | None = None


@dataclass
class Habits:
    """What only probing can find out about a target; shared by all its subjects once found.

    `roles` are those of parameters and statistics whose names do not say so, `unknown` parameters that play no
    role at all; `eval_without_grad` layers switch to evaluation where torch records no gradients; `weight_offset` is
    added to the stored weight by layers that start it from zero; `full_ranks` take parameters of the input's rank.
    """

    roles: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    eval_without_grad: bool = False
    weight_offset: float = 0.0
    framework: str | None = None
    full_ranks: set[int] = field(default_factory=set)


class Subject(ABC):
    """A layer as float arrays in and out.

    `form` is what it is written as; `home` the dialect that such layers speak unless they say otherwise;
    `settable` the options of `Options` that the target takes; `declared` its own eps and momentum where declared.
    """

    form: str
    home: str
    name: str
    options: Options
    settable: frozenset[str] = frozenset()
    has_backward: bool = True
    dtypes: tuple[str, ...] = ("float64", "float32")
    channel_axis: int = 1
    rounding: float = 0.0  # relative error in eps and momentum as the target stores them
    habits: Habits = Habits()  # subjects that are probed make their own
    free_momentum: bool = False  # handed by the caller, so that either reading of it is right

    @abstractmethod
    def fresh(self, **changes: Any) -> Subject:
        """A new layer in its initial state, built with changed options; raises Unsupported."""

    @abstractmethod
    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        """The output, of x's shape; raises TargetFailure."""

    @abstractmethod
    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Gradients of sum(y * dy) of the last forward pass: "x" and the parameters' roles, those flattened."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, NDArray[Any]]:
        """Current weight, bias, gate (those that exist), in their own shapes."""

    @abstractmethod
    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        """Overwrite parameters; each value is reshaped to the parameter's own shape."""

    @property
    @abstractmethod
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Running mean and variance as float64 (C,), or None where the layer keeps none."""

    @abstractmethod
    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        """Overwrite the running statistics."""

    @property
    def tracks(self) -> bool:
        """Whether the layer keeps running statistics, perhaps only from the first batch on."""
        return self.running is not None

    def learnable(self) -> dict[str, NDArray[Any]]:
        """Every tensor that training could change, by its name."""
        return {}

    def kept(self) -> dict[str, NDArray[Any]]:
        """Every other tensor that a new layer holds, by its name: perhaps running statistics."""
        return {}

    def set_tensor(self, name: str, value: NDArray[Any]) -> None:
        """Overwrite one of `learnable`."""
        raise Unsupported("the target's tensors cannot be set by name")

    @property
    def tape(self) -> Any:
        """What the last forward pass left for its backward pass; assign it to go back to an earlier pass."""
        raise Unsupported("the target keeps its forward pass to itself")

    @tape.setter
    def tape(self, tape: Any) -> None:
        raise Unsupported("the target keeps its forward pass to itself")

    def lines(self, x: NDArray[Any]) -> int:
        """How many lines of Python a forward pass in training runs: its work, on whatever machine."""
        count = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            self.forward(x, True)
        finally:
            sys.settrace(before)
        return count

    @property
    def given(self) -> NDArray[Any] | None:
        """The input of the last forward pass as that left it; None where the target keeps it to itself."""
        return None

    @property
    def class_name(self) -> str:
        """The name of the class that the target builds, where that is another than the target's."""
        return ""

    @property
    def declared_shape(self) -> tuple[int, ...] | None:
        """The shape that the target says it normalizes over."""
        return None

    @property
    def inherits_options(self) -> bool:
        """Whether a Module takes its constructor from torch's class and has a forward pass of its own.

        An option that it raises an error for was promised by torch's class, not by the layer's author.
        """
        return False

    @property
    def cumulative(self) -> bool:
        """Whether the running statistics are the average over all batches so far: momentum=None in torch."""
        return False

    @property
    def declared(self) -> dict[str, float]:
        """What the target says of itself: eps, momentum."""
        return {}


def size_of(value: Any) -> int:
    """The number of elements of an array or a tensor."""
    return int(np.prod(tuple(getattr(value, "shape", ()))))


def checked_output(what: Any, shape: tuple[int, ...], dtype: Any = None) -> NDArray[Any]:
    """The target's output as an array of this shape; raises TargetFailure when it is something else."""
    if what is None:
        raise TargetFailure("returned None; expected the normalized array")
    array = np.asarray(what)
    if array.dtype.kind not in "fiu":
        raise TargetFailure(f"returned {type(what).__name__} of dtype {array.dtype}; expected real numbers")
    if array.shape != shape:
        raise TargetFailure(f"returned shape {array.shape} for an input of shape {shape}; a norm keeps the shape")
    return array


def guarded(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call into the target; whatever it raises, SystemExit included, becomes a TargetFailure."""
    try:
        return fn(*args, **kwargs)
    except (TargetFailure, Unsupported, KeyboardInterrupt):
        raise
    except BaseException as e:
        text = str(e).strip().splitlines()
        raise TargetFailure(f"raised {type(e).__name__}: {text[0] if text else '(no message)'}", e) from e


def in_order(gradients: dict[str, Any], learned: list[str]) -> tuple[Any, ...]:
    """Gradients by name, such as dx and dgamma, or x and gamma, as the tuple (dx, dweight, dbias)."""
    found: dict[str, Any] = {}
    for name, value in gradients.items():
        short = re.sub(r"^(d_?|grad_)|(_?grad)$", "", name)
        role = role_of(name) or role_of(short)
        found.setdefault(role if role in ("weight", "bias", "gate") else short, value)
    missing = [f"d{name}" for name in ("x", *learned) if name not in found]
    if missing:
        raise TargetFailure(f"backward returned {', '.join(gradients)}; expected {', '.join(missing)} too")
    return tuple(found[name] for name in ("x", *learned))


_PASSED_ON = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def call_by_roles(
    target: Callable[..., Any],
    options: Options,
    like: Callable[..., Any] | None = None,
    given: tuple[str, ...] = (),
    arrays: bool = False,
) -> tuple[Any, frozenset[str]]:
    """Call a class or factory with arguments found by their names; returns the layer and the options it takes.

    `like` has the signature to read where `target` wraps it; `given` names arguments that `target` fills in;
    `arrays` says that required arguments named as parameters want NumPy arrays of one value per channel.
    """
    try:
        signature = _signature(like or target)
    except (TypeError, ValueError) as e:
        raise TargetFailure(f"cannot be built: its signature is not to be read ({e})") from e
    wanted = {
        "channels": options.channels,
        "groups": options.groups,
        "eps": options.eps,
        "momentum": options.momentum,
        "affine": options.affine,
        "track": options.track,
    }
    made = {
        "eps": 1e-5,
        "momentum": 0.1,
        "rank": options.rank or 4,
        "weight": np.ones(options.channels) if arrays else True,
        "bias": np.zeros(options.channels) if arrays else True,
        "running_mean": np.zeros(options.channels),
        "running_var": np.ones(options.channels),
        "training": True,
    }
    positional: list[Any] = []
    named: dict[str, Any] = {}
    settable: set[str] = set()
    guessed = None
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in given:
            continue
        role = role_of(p.name)
        required = p.default is p.empty
        if role in wanted and role is not None:
            settable.add(role)
            value: Any = wanted[role]
            if role == "channels" and p.name in ("normalized_shape", "shape"):
                settable.add("tail")
                value = options.tail or value
            if role == "momentum":
                settable.add("cumulative")
                if options.cumulative:
                    named[p.name] = None
                    continue
            if value is None and required:
                value = made[role]
            if value is not None:
                named[p.name] = value
        elif required and role in made and (arrays or role not in ("weight", "bias") or "channels" in settable):
            named[p.name] = made[role]
            settable |= {"rank"} if role == "rank" else {"channels"} if arrays else set()
        elif required and "channels" not in settable:
            settable.add("channels")
            named[p.name] = options.channels
            guessed = p.name
        elif required:
            raise TargetFailure(
                _advise_build(like or target, p.name, "it requires the argument {!r}, which no norm has")
            )
        if p.name in named and p.kind is p.POSITIONAL_ONLY:
            positional.append(named.pop(p.name))
    try:
        return guarded(target, *positional, **named), frozenset(settable)
    except TargetFailure as e:
        if guessed is None:
            raise
        tried = f"with {guessed}={options.channels}, a number of channels, it {e}"
        raise TargetFailure(_advise_build(like or target, guessed, tried), e.original) from e


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """The signature of a target; of a class that passes all it is given on, `*args, **kwargs`, its base's."""
    signature = inspect.signature(target)
    for base in target.__mro__[1:] if isinstance(target, type) else ():
        kinds = {p.kind for p in signature.parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds or not kinds <= _PASSED_ON:
            break
        signature = inspect.signature(base)
    return signature


def _advise_build(target: Callable[..., Any], argument: str, why: str) -> str:
    """What to do about a layer that is built from more than a number of channels."""
    name = getattr(target, "__name__", "Layer")
    return (
        f"cannot be built: {why.format(argument)}; give a function without arguments that builds the layer, such as "
        f"`def make(): return {name}({argument}=...)`, and check that"
    )
