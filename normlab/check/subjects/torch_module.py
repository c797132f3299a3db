"""torch Modules under test: built from a class, a factory or a given instance."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normlab.check.subjects.base import (
    Habits,
    Options,
    Subject,
    TargetFailure,
    Unsupported,
    call_by_roles,
    checked_output,
    guarded,
    role_of,
)
from normlab.check.subjects.gradients import gradients

LEARNED = ("weight", "bias", "gate")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def to_torch(x: NDArray[Any], dtype: str | None = None) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(x, order="C"))
    return tensor if dtype is None else tensor.to(DTYPES[dtype])


def from_torch(t: torch.Tensor) -> NDArray[Any]:
    t = t.detach().cpu()
    return (t.float() if t.dtype is torch.bfloat16 else t).numpy().copy()


class TorchSubject(Subject):
    """A torch Module. `build` makes one from options; `module` is the one in use."""

    form = "torch Module"
    home = "torch"
    dtypes = ("float64", "float32", "float16", "bfloat16")

    def __init__(
        self,
        name: str,
        build: Callable[[Options], tuple[Any, frozenset[str]]],
        options: Options,
        habits: Habits | None = None,
    ) -> None:
        self.name, self.build, self.options = name, build, options
        self.habits = habits or Habits()
        module, self.settable = build(options)
        if not isinstance(module, torch.nn.Module):
            raise TargetFailure(f"built a {type(module).__name__}; expected a torch.nn.Module")
        _settle(module, options.channels)
        self.module = module.to(DTYPES[options.dtype])
        found = self.parameters.get("weight", self.parameters.get("bias"))
        if "channels" not in self.settable:  # an instance or a factory without arguments has its own sizes
            self.options = replace(options, channels=_channels(self.module, found))
        groups = _groups(self.module)
        self.declares_groups = groups is not None or "groups" in self.settable
        if groups is not None and "groups" not in self.settable:
            self.options = replace(self.options, groups=groups)
        self._graph: tuple[torch.Tensor, torch.Tensor] | None = None
        self._given: torch.Tensor | None = None

    @classmethod
    def from_callable(cls, name: str, target: Callable[..., Any], options: Options) -> TorchSubject:
        return cls(name, lambda o: call_by_roles(target, o), options)

    @classmethod
    def from_instance(cls, name: str, module: torch.nn.Module, options: Options) -> TorchSubject:
        _settle(module, options.channels)
        pristine = copy.deepcopy(module)

        def build(o: Options) -> tuple[Any, frozenset[str]]:
            made = copy.deepcopy(pristine)
            for role, value in (("eps", o.eps), ("momentum", o.momentum)):
                if value is not None:
                    raise Unsupported(f"a given instance keeps its own {role}")
            return made, frozenset()

        return cls(name, build, options)

    def fresh(self, **changes: Any) -> TorchSubject:
        asked = {k for k in changes if k not in ("dtype",) and changes[k] is not None}
        missing = asked - self.settable - ({"groups", "channels"} if not asked & {"groups", "channels"} else set())
        if missing:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        made = TorchSubject(self.name, self.build, replace(self.options, **changes), self.habits)
        made.channel_axis = self.channel_axis
        return made

    # --- calls ---

    def run(self, x: torch.Tensor, training: bool) -> torch.Tensor:
        """Call the module on a tensor as it is, layout and all."""
        self.module.train(training)
        with torch.no_grad() if self.habits.eval_without_grad and not training else contextlib.nullcontext():
            y = guarded(self.module, x)
        if isinstance(y, (tuple, list)) and len(y) > 1 and isinstance(y[0], torch.Tensor):
            y = y[0]  # the output, then the statistics
        if not isinstance(y, torch.Tensor):
            raise TargetFailure(f"returned {type(y).__name__}; expected a tensor")
        if y.shape != x.shape:
            raise TargetFailure(
                f"returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}; a norm keeps the shape"
            )
        return y

    def silently(self) -> contextlib.AbstractContextManager[Any]:
        """torch.no_grad(), unless the layer takes that for evaluation."""
        return contextlib.nullcontext() if self.habits.eval_without_grad else torch.no_grad()

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        tensor = to_torch(x, self.options.dtype).requires_grad_(True)
        with torch.enable_grad():
            self._given = tensor.clone()  # in a network, too, the input is no leaf of the graph
            y = self.run(self._given, training)
        self._graph = (tensor, y)
        return checked_output(from_torch(y), x.shape)

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        assert self._graph is not None
        x, y = self._graph
        named = self._tensors()
        wanted = {role: p for role, p in named.items() if p.requires_grad}
        if not y.requires_grad and self.habits.eval_without_grad and not self.module.training:
            raise Unsupported("the layer evaluates where torch records no gradients: there is no backward pass")
        if not y.requires_grad:
            raise TargetFailure("its output has no gradient: the graph is cut (detach, .data or no_grad inside)")
        grads = guarded(gradients, y, [x, *wanted.values()], to_torch(dy), keep_graph=True)
        out = {"x": np.zeros(dy.shape) if grads[0] is None else from_torch(grads[0])}
        for (role, p), g in zip(wanted.items(), grads[1:], strict=True):
            out[role] = np.zeros(p.numel()) if g is None else from_torch(g).reshape(-1)
        return out

    def dx(self, y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        """The gradient in `x` of an output `y`; zeros where `y` does not depend on it, or has no graph."""
        found = guarded(gradients, y, [x], dy, create_graph)[0] if y.requires_grad else None
        return torch.zeros_like(x) if found is None else found

    @property
    def given(self) -> NDArray[Any] | None:
        return None if self._given is None else from_torch(self._given)

    @property
    def tape(self) -> Any:
        return self._graph

    @tape.setter
    def tape(self, tape: Any) -> None:
        self._graph = tape

    # --- state ---

    def role(self, name: str) -> str | None:
        return self.habits.roles.get(name) or role_of(name)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Learnable tensors by role: registered parameters first, then tensors that were never registered."""
        out: dict[str, torch.Tensor] = {}
        for name, p in self._named_tensors():
            role = self.role(name)
            if role in LEARNED:
                out.setdefault(role, p)
        return out

    def _named_tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [*self.module.named_parameters(), *_plain_tensors(self.module)]

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        found = {role: from_torch(t) for role, t in self._tensors().items()}
        if "weight" in found:
            found["weight"] = found["weight"] + self.habits.weight_offset
        return found

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        with torch.no_grad():
            for role, t in self._tensors().items():
                if role in values:
                    stored = values[role] - (self.habits.weight_offset if role == "weight" else 0.0)
                    t.copy_(to_torch(stored).to(t.dtype).reshape(t.shape))

    def learnable(self) -> dict[str, NDArray[Any]]:
        return {n: from_torch(p) for n, p in self.module.named_parameters() if p.requires_grad}

    def kept(self) -> dict[str, NDArray[Any]]:
        learned = self.learnable()
        every = [*self.module.named_buffers(), *self._named_tensors()]
        return {n: from_torch(t) for n, t in every if n not in learned and t.is_floating_point()}

    def set_tensor(self, name: str, value: NDArray[Any]) -> None:
        with torch.no_grad():
            t = dict(self.module.named_parameters())[name]
            t.copy_(to_torch(value).to(t.dtype).reshape(t.shape))

    def running_tensors(self) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for name, t in [*self.module.named_buffers(), *self._named_tensors()]:
            role = self.role(name)
            if role in ("running_mean", "running_var"):
                out.setdefault(role, t)
        return out

    @property
    def running_names(self) -> list[str]:
        """The names of the tensors that hold the running statistics."""
        every = [*self.module.named_buffers(), *self._named_tensors()]
        return [n for n, _ in every if self.role(n) in ("running_mean", "running_var")]

    @property
    def stores_float32(self) -> bool:
        """Whether a float64 layer keeps float32 running statistics: they did not move with it."""
        return any(t.dtype is torch.float32 for t in self.running_tensors().values())

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        found = self.running_tensors()
        if len(found) < 2:
            return None
        mean, var = (from_torch(found[k]).astype(np.float64).reshape(-1) for k in ("running_mean", "running_var"))
        return mean, var

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        found = self.running_tensors()
        with torch.no_grad():
            for role, value in (("running_mean", mean), ("running_var", var)):
                t = found[role].data
                if t.numel() != value.size:
                    raise TargetFailure(f"keeps {t.numel()} values as its {role}; expected {value.size}")
                t.copy_(to_torch(value).to(t.dtype).reshape(t.shape))
            if self.cumulative:  # the next batch is the first of the average
                for _, count in self.module.named_buffers():
                    if not count.is_floating_point():
                        count.zero_()

    @property
    def class_name(self) -> str:
        return type(self.module).__name__

    @property
    def declared_shape(self) -> tuple[int, ...] | None:
        shape = getattr(self.module, "normalized_shape", None)
        return tuple(shape) if isinstance(shape, (tuple, list)) else None

    @property
    def inherits_options(self) -> bool:
        cls = type(self.module)
        maker = getattr(cls, "__init__")  # noqa: B009  (a class's own, as the type checker cannot see)
        return str(getattr(maker, "__module__", "")).startswith("torch.") and not cls.__module__.startswith("torch.")

    @property
    def cumulative(self) -> bool:
        told = vars(self.module)
        return any(role_of(name) == "momentum" and value is None for name, value in told.items()) and self.tracks

    @property
    def declared(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for role in ("eps", "momentum"):
            for name, value in vars(self.module).items():
                if role_of(name) == role and isinstance(value, (int, float)) and not isinstance(value, bool):
                    out[role] = float(value)
        return out


def is_operation(thing: Any) -> bool:
    """Whether a thing is a class derived from torch.autograd.Function."""
    return isinstance(thing, type) and issubclass(thing, torch.autograd.Function)


def as_function(operation: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The function of tensors that a torch.autograd.Function is, with the arguments of its forward, without ctx."""
    signature = inspect.signature(operation.forward)
    if operation.setup_context is torch.autograd.Function.setup_context:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])

    def apply(*args: Any, **named: Any) -> Any:
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        return operation.apply(*bound.args)

    apply.__signature__ = signature  # type: ignore[attr-defined]
    return apply


def _plain_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, value)
        for holder in (vars(module), vars(type(module)))
        for name, value in holder.items()
        if isinstance(value, torch.Tensor)
    ]


def _settle(module: torch.nn.Module, channels: int) -> None:
    """Have a lazy module take its sizes, as a first input in evaluation does."""
    lazy = torch.nn.parameter.is_lazy
    training = module.training
    for rank in (4, 2, 3, 5):
        if not any(lazy(t) for t in (*module.parameters(), *module.buffers())):
            break
        with contextlib.suppress(TargetFailure), torch.no_grad():
            guarded(module.eval(), torch.zeros(2, channels, *[3] * (rank - 2)))
    module.train(training)


def _groups(module: torch.nn.Module) -> int | None:
    """The number of groups that a module says it has."""
    told = (v for n, v in vars(module).items() if role_of(n) == "groups" and isinstance(v, int))
    return next(told, None)


def _channels(module: torch.nn.Module, parameter: NDArray[Any] | None) -> int:
    if parameter is not None:
        return int(parameter.size)
    for name, value in vars(module).items():
        if role_of(name) == "channels":
            return int(np.prod(value))
    return Options().channels
