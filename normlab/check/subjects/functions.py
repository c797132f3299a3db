"""Functions under test: NumPy forward/backward pairs with a cache, and plain functions of NumPy or torch.

Arguments are found by their names. Teaching assignments hand a dictionary (`bn_param`, `ln_param`, `gn_param`)
with mode, eps, momentum, running_mean and running_var; plain functions take them as arguments.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import (
    Habits,
    Options,
    Subject,
    TargetFailure,
    Unsupported,
    checked_output,
    guarded,
    in_order,
    role_of,
    size_of,
)

LEARNED = ("weight", "bias", "gate")
HANDED_MOMENTUM = 0.1


class FunctionSubject(Subject):
    """A forward function, and a backward function where there is one, with its state kept here."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        backward: Callable[..., Any] | None,
        options: Options,
        kind: str | None,
        habits: Habits | None = None,
    ) -> None:
        self.name, self.function, self.backward_function, self.options = name, function, backward, options
        self.kind = kind
        self.form = "NumPy forward/backward pair" if backward else "function"
        self.roles = _argument_roles(function)
        self.settable = frozenset({"channels"} | ({"groups"} & set(self.roles)))
        if "config" in self.roles:
            self.settable |= {"eps"} | ({"momentum"} if kind in ("batch", None) else set())
        self.settable |= {"eps", "momentum"} & set(self.roles)
        c = options.channels
        self._parameters = {r: (np.zeros if r == "bias" else np.ones)(c) for r in LEARNED if r in self.roles}
        keeps = {"running_mean", "running_var"} <= set(self.roles) or (
            "config" in self.roles and kind in ("batch", None, "batch-instance")
        )
        self._running: tuple[NDArray[Any], NDArray[Any]] | None = (np.zeros(c), np.ones(c)) if keeps else None
        self.habits = habits or Habits()
        self._last: dict[str, Any] = {}
        self.overwrote_gradient = False
        self.config: dict[str, Any] = {}
        self.rounding = getattr(function, "rounding", 0.0)

    @property
    def home(self) -> str:  # type: ignore[override]
        told = getattr(self.function, "dialect", None)
        return told or ("torch" if self.habits.framework == "torch" else "teaching")

    @property
    def has_backward(self) -> bool:  # type: ignore[override]
        return self.backward_function is not None or self.habits.framework == "torch"

    @property
    def dtypes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("float64", "float32", "float16") + (("bfloat16",) if self.habits.framework == "torch" else ())

    def fresh(self, **changes: Any) -> FunctionSubject:
        missing = {k for k in changes if k != "dtype" and changes[k] is not None} - self.settable
        if missing == {"affine"} and not changes["affine"]:
            raise Unsupported("the function always takes its parameters")
        if missing - {"affine", "groups"}:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        made = FunctionSubject(
            self.name,
            self.function,
            self.backward_function,
            replace(self.options, **changes),
            self.kind,
            habits=self.habits,
        )
        made.channel_axis = self.channel_axis
        return made

    # --- calls ---

    def _arguments(self, x: NDArray[Any], training: bool) -> dict[str, Any]:
        dtype = x.dtype
        roles = self.roles
        args: dict[str, Any] = {}
        for role, value in self._parameters.items():
            args[roles[role]] = self._reshape(value.astype(dtype), x.ndim)
        if "config" in roles:
            self.config = {"mode": "train" if training else "test"}
            self.config["eps"] = 1e-5 if self.options.eps is None else self.options.eps
            if self.kind in ("batch", "batch-instance", None):
                self.config["momentum"] = 0.9 if self.options.momentum is None else self.options.momentum
            if self._running is not None:
                self.config["running_mean"], self.config["running_var"] = (r.copy() for r in self._running)
            args[roles["config"]] = self.config
        for role in ("eps", "momentum"):
            value = getattr(self.options, role)
            if role in roles and (value is not None or _is_required(self.function, roles[role])):
                args[roles[role]] = {"eps": 1e-5, "momentum": HANDED_MOMENTUM}[role] if value is None else value
        if "running_mean" in roles and self._running is not None:
            args[roles["running_mean"]], args[roles["running_var"]] = (
                self._reshape(r.astype(dtype), x.ndim) for r in self._running
            )
        if "training" in roles:
            name = roles["training"]
            args[name] = ("train" if training else "test") if name == "mode" else training
        if "groups" in roles:
            args[roles["groups"]] = self.options.groups
        if "channels" in roles:
            args[roles["channels"]] = (self.options.channels,)
        return args

    def _reshape(self, value: NDArray[Any], ndim: int) -> NDArray[Any]:
        """A parameter as the function wants it: one value per channel, or with the input's rank."""
        if ndim not in self.habits.full_ranks:
            return value
        ones = [1] * (ndim - 2)
        return value.reshape(1, -1, *ones) if self.channel_axis == 1 else value.reshape(1, *ones, -1)

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        if self.habits.framework is None:
            return self._find_library(x, training)
        args = self._arguments(x, training)
        first: Any = np.array(x) if x.flags.c_contiguous else x  # a strided input is handed on as it is
        if self.habits.framework == "torch":
            import torch

            def tensor(a: Any, grad: bool = False) -> Any:
                return torch.from_numpy(a).requires_grad_(grad) if isinstance(a, np.ndarray) else a

            first = tensor(first, True)
            learned = {self.roles[r] for r in LEARNED if r in self.roles}
            args = {k: tensor(v, k in learned) for k, v in args.items()}
        with self._recording(training):
            answer = guarded(self.function, first, **args)
        y, cache, returned_running = _unpack(answer, self.options.channels, self._running is not None)
        self._last = {"x": first, "args": args, "y": y, "cache": cache, "training": training}
        self._keep_running(args, returned_running)
        if hasattr(y, "detach"):
            y = y.detach().numpy()
        return checked_output(y, x.shape).copy()

    @contextlib.contextmanager
    def _recording(self, training: bool) -> Iterator[None]:
        """torch's gradients on; off in evaluation where a function has no other way to learn the mode."""
        if self.habits.framework != "torch":
            yield
            return
        import torch

        silent = not training and self.evaluates_without_grad
        with torch.set_grad_enabled(not silent):
            yield

    @property
    def evaluates_without_grad(self) -> bool:
        """Whether a function of tensors has running statistics and no argument for the mode."""
        told = {"training", "config"} & set(self.roles)
        return self.habits.framework == "torch" and "running_mean" in self.roles and not told

    def _find_library(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        failures: list[TargetFailure] = []
        for library in ("numpy", "torch"):
            if failures and not _may_want_tensors(failures[0]):
                break
            self.habits.framework = library
            try:
                y = self.forward(x, training)
            except TargetFailure as e:
                failures.append(e)
                continue
            return y
        self.habits.framework = None
        raise failures[0]

    def _keep_running(self, args: dict[str, Any], returned: tuple[Any, Any] | None) -> None:
        if self._running is None:
            return
        if returned is not None:
            pair = returned
        elif "config" in self.roles:
            pair = (self.config.get("running_mean"), self.config.get("running_var"))
        else:
            pair = (args[self.roles["running_mean"]], args[self.roles["running_var"]])
        kept = []
        for old, new in zip(self._running, pair, strict=True):
            array = None if new is None else np.asarray(new.detach() if hasattr(new, "detach") else new)
            fits = array is not None and array.size == old.size and array.dtype.kind == "f"
            kept.append(array.astype(np.float64).reshape(-1).copy() if fits and array is not None else old)
        self._running = (kept[0], kept[1])

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        learned = [r for r in LEARNED if r in self.roles]
        grads = self._differentiate(dy, learned) if self.backward_function is None else self._call_backward(dy, learned)
        out = {"x": np.zeros(dy.shape) if grads[0] is None else checked_output(grads[0], dy.shape)}
        for role, g in zip(learned, grads[1:], strict=True):
            size = self._parameters[role].size
            if g is not None and g.size != size:
                raise TargetFailure(f"backward returned d{role} of shape {g.shape}; expected {size} values")
            out[role] = np.zeros(size) if g is None else g.astype(np.float64).reshape(-1)
        return out

    def _differentiate(self, dy: NDArray[Any], learned: list[str]) -> list[NDArray[Any] | None]:
        """Gradients by autograd, for functions of tensors."""
        if self.habits.framework != "torch":
            raise Unsupported("the function has no backward pass")
        import torch

        from normlab.check.subjects.gradients import gradients

        y = self._last["y"]
        if not self._last["training"] and self.evaluates_without_grad:
            raise Unsupported("the function evaluates where torch records no gradients")
        if not y.requires_grad:
            raise TargetFailure("its output has no gradient: the graph is cut (detach or no_grad inside)")
        of = [self._last["x"], *(self._last["args"][self.roles[r]] for r in learned)]
        found = guarded(gradients, y, of, torch.from_numpy(dy), keep_graph=True)
        return [None if g is None else g.numpy() for g in found]

    def _call_backward(self, dy: NDArray[Any], learned: list[str]) -> list[NDArray[Any] | None]:
        """Gradients by the pair's own backward function."""
        assert self.backward_function is not None
        if self._last["cache"] is None and not self._last["training"]:
            raise Unsupported("the forward function leaves no cache in evaluation: there is no backward pass")
        given: Any = np.array(dy)
        if self.habits.framework == "torch":
            import torch

            given = torch.from_numpy(given)
            with torch.no_grad():
                answer = guarded(self.backward_function, given, self._last["cache"])
        else:
            answer = guarded(self.backward_function, given, self._last["cache"])
        self.overwrote_gradient = not np.array_equal(given, dy)
        if isinstance(answer, dict):
            answer = in_order(answer, learned)
        if isinstance(answer, list):
            answer = tuple(answer)
        if not learned and not isinstance(answer, tuple):
            answer = (answer,)
        if not isinstance(answer, tuple) or len(answer) < 1 + len(learned):
            raise TargetFailure(
                f"backward returned {_describe(answer)}; expected a tuple (dx, {', '.join('d' + r for r in learned)})"
            )
        parts = [a.detach().numpy() if hasattr(a, "detach") else a for a in answer[: 1 + len(learned)]]
        return [None if g is None else np.asarray(g) for g in parts]

    @property
    def given(self) -> NDArray[Any] | None:
        x: Any = self._last.get("x")
        return x.detach().numpy() if hasattr(x, "detach") else x

    @property
    def tape(self) -> dict[str, Any]:
        return self._last

    @tape.setter
    def tape(self, tape: dict[str, Any]) -> None:
        self._last = tape

    # --- state ---

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        return dict(self._parameters)

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        for role in self._parameters:
            if role in values:
                self._parameters[role] = np.array(values[role], dtype=np.float64).reshape(-1)

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        return self._running

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        self._running = (np.array(mean), np.array(var))

    @property
    def declared(self) -> dict[str, float]:
        out = {}
        if "config" in self.roles:  # what we hand it
            out["eps"] = 1e-5
            if self._running is not None:
                out["momentum"] = 0.9
        for role in ("eps", "momentum"):
            if role in self.roles:
                default = inspect.signature(self.function).parameters[self.roles[role]].default
                if isinstance(default, (int, float)):
                    out[role] = float(default)
                elif role == "momentum":
                    out[role] = HANDED_MOMENTUM
        return out

    @property
    def free_momentum(self) -> bool:  # type: ignore[override]
        return "momentum" in self.roles and _is_required(self.function, self.roles["momentum"])


def _may_want_tensors(failure: TargetFailure) -> bool:
    """Whether a function that fails on arrays may be one of tensors: torch is imported, or methods are missing."""
    return "torch" in sys.modules or isinstance(failure.original, (TypeError, AttributeError))


def _argument_roles(function: Callable[..., Any]) -> dict[str, str]:
    """Role -> argument name; the first argument is the input."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError) as e:
        raise TargetFailure(f"has a signature that cannot be read ({e})") from e
    if not names:
        raise TargetFailure("takes no arguments; expected the input first")
    roles: dict[str, str] = {}
    for name in names[1:]:
        if name.lower().endswith(("_param", "_params", "config", "_cfg")) or name == "param":
            roles.setdefault("config", name)
        elif name == "G":
            roles.setdefault("groups", name)
        elif role := role_of(name):
            roles.setdefault(role, name)
    unknown = [n for n in names[1:] if n not in roles.values() and _is_required(function, n)]
    if unknown:
        raise TargetFailure(_advise_call(function, names[0], unknown[0]))
    return roles


def _advise_call(function: Callable[..., Any], first: str, unknown: str) -> str:
    """What to do about a function that wants more than an input, parameters and settings."""
    name = getattr(function, "__name__", "function")
    return (
        f"cannot be called: it requires the argument {unknown!r}, whose meaning its name does not say (no fault of its "
        f"mathematics); give a function of known arguments, such as `def norm({first}, gamma, beta, eps=1e-5): return "
        f"{name}({first}, {unknown}=...)`, and check that"
    )


def _is_required(function: Callable[..., Any], name: str) -> bool:
    parameter = inspect.signature(function).parameters[name]
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _unpack(answer: Any, channels: int, tracks: bool) -> tuple[Any, Any, tuple[Any, Any] | None]:
    """(y, cache, running) of what a function returned: y, (y, cache), (y, mean, var) or (y, mean, var, ...)."""
    if not isinstance(answer, (tuple, list)):
        return answer, None, None
    if len(answer) == 0:
        raise TargetFailure("returned an empty tuple; expected the output first")
    if tracks and len(answer) >= 3 and all(hasattr(a, "shape") and size_of(a) == channels for a in answer[1:3]):
        return answer[0], answer[3] if len(answer) > 3 else None, (answer[1], answer[2])
    return answer[0], (answer[1] if len(answer) > 1 else None), None


def _describe(answer: Any) -> str:
    return f"a tuple of {len(answer)}" if isinstance(answer, tuple) else type(answer).__name__
