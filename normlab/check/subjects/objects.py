"""Layer objects that are no torch Modules: a class with forward(x[, training]) and backward(dy), or one that is called.

Parameters are attributes (gamma, beta, or other names), arrays or tensors, entries of a dictionary or a list of
parameters, or boxes that hold a value and its gradient.
"""

from __future__ import annotations

import contextlib
import inspect
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
    call_by_roles,
    checked_output,
    guarded,
    in_order,
    role_of,
    size_of,
)
from normlab.check.subjects.places import gradient, is_tensor, place, places, spelled

LEARNED = ("weight", "bias", "gate")
RUNNING = ("running_mean", "running_var")
FORWARDS = ("forward", "forward_pass", "fprop")
BACKWARDS = ("backward", "backward_pass", "bprop")
SWITCHES = ("training", "train_mode", "is_training", "train_flg", "train")


class ObjectSubject(Subject):
    """An object with attributes gamma and beta (or their other names) and gradients beside them (dgamma, dbeta)."""

    form = "NumPy layer object"
    home = "teaching"

    def __init__(self, name: str, cls: Callable[..., Any], options: Options, habits: Habits | None = None) -> None:
        self.name, self.cls, self.options = name, cls, options
        self.habits = habits or Habits()
        self.layer, self.settable = call_by_roles(cls, options, arrays=True)
        self._call = method(self.layer, FORWARDS) or self.layer
        if not callable(self._call):
            raise TargetFailure("has neither forward nor __call__")
        self._backward = method(self.layer, BACKWARDS)
        self._make_parameters()
        self._torch = any(is_tensor(v) for _, v in self._slots())
        if "channels" not in self.settable:
            sizes = [size_of(v) for n, v in self._slots() if role_of(n) in (*LEARNED, *RUNNING) and v is not None]
            self.options = replace(options, channels=int(sizes[0])) if sizes else options
        self._told: dict[str, str] = {}
        for path, value in self._slots():
            role = self.habits.roles.get(path) or role_of(path)
            fits = value is None and role in RUNNING and not _bare(path)
            if role in (*LEARNED, *RUNNING) and (fits or size_of(value) == self.options.channels):
                self._told.setdefault(role, path)
        if self._torch:
            self._as_float(options.dtype)
        arguments = list(inspect.signature(self._call).parameters)
        self._training = next((a for a in arguments if role_of(a) == "training"), None)
        self._last: tuple[Any, Any] | None = None

    @property
    def has_backward(self) -> bool:  # type: ignore[override]
        return self._torch or self._backward is not None

    @property
    def dtypes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("float64", "float32") if self._torch else ("float64", "float32", "float16")

    def fresh(self, **changes: Any) -> ObjectSubject:
        missing = {k for k in changes if k != "dtype" and changes[k] is not None} - self.settable - {"groups"}
        if missing:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        made = ObjectSubject(self.name, self.cls, replace(self.options, **changes), self.habits)
        made.channel_axis = self.channel_axis
        return made

    # --- calls ---

    def _set_mode(self, training: bool) -> dict[str, Any]:
        """Put the object into a mode; returns the arguments that do it where forward takes one."""
        if self._training == "mode":
            return {"mode": "train" if training else "test"}
        if self._training:
            return {self._training: training}
        for name in SWITCHES:
            held = getattr(self.layer, name, None)
            if isinstance(held, (bool, int)):
                setattr(self.layer, name, training)
                return {}
        if isinstance(getattr(self.layer, "mode", None), str):
            self.layer.mode = "train" if training else "test"
        elif callable(switch := getattr(self.layer, "train" if training else "eval", None)):
            guarded(switch)
        return {}

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        given: Any = np.array(x)
        if self._torch:
            import torch

            given = torch.from_numpy(given).requires_grad_(True)
            for role in LEARNED:
                if role in self._names:
                    place(self.layer, self._names[role]).value.requires_grad_(True)
        y = guarded(self._call, given, **self._set_mode(training))
        y = y[0] if isinstance(y, tuple) else y
        self._last = (given, y)
        return checked_output(y.detach().numpy() if hasattr(y, "detach") else y, x.shape).copy()

    @property
    def given(self) -> NDArray[Any] | None:
        return None if self._last is None else _numpy(self._last[0])

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        learned = [r for r in LEARNED if r in self._names]
        if self._backward is None:
            if not self._torch:
                raise Unsupported("the layer has no backward pass")
            return self._differentiate(dy, learned)
        answer = guarded(self._backward, np.array(dy))
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
            answer = {"x": answer[0], **answer[1]}
        if isinstance(answer, dict):
            answer = in_order(answer, learned)
        parts = answer if isinstance(answer, tuple) else (answer,)
        out = {"x": checked_output(parts[0], dy.shape).copy()}
        for role, given in zip(learned, parts[1:], strict=False):
            out[role] = np.asarray(given, dtype=np.float64).reshape(-1)
        for role in learned:
            if role not in out:
                out[role] = self._gradient(self._names[role])
            if out[role].size != self.options.channels:
                raise TargetFailure(
                    f"backward gives {out[role].size} values as the gradient of {self._names[role]}; expected "
                    f"{self.options.channels}"
                )
        return out

    def _differentiate(self, dy: NDArray[Any], learned: list[str]) -> dict[str, NDArray[Any]]:
        import torch

        from normlab.check.subjects.gradients import gradients

        assert self._last is not None
        x, y = self._last
        if not y.requires_grad:
            raise TargetFailure("its output has no gradient: the graph is cut (detach, .data or no_grad inside)")
        wanted = [x, *(place(self.layer, self._names[r]).value for r in learned)]
        found = guarded(gradients, y, wanted, torch.from_numpy(dy), keep_graph=True)
        grads = [np.zeros(tuple(w.shape)) if g is None else g.numpy() for w, g in zip(wanted, found, strict=True)]
        return {"x": grads[0], **{r: g.reshape(-1) for r, g in zip(learned, grads[1:], strict=True)}}

    def _gradient(self, path: str) -> NDArray[Any]:
        found = gradient(self.layer, path)
        if found is None:
            name, expected = path.rpartition(".")[2], spelled(path)[0]
            raise TargetFailure(f"backward left no gradient of {name}: expected it returned after dx or as {expected}")
        return np.array(found, dtype=np.float64).reshape(-1)

    # --- state ---

    @property
    def _names(self) -> dict[str, str]:
        """Role -> where it is held: by the names in a new layer, or as found by its effect."""
        return self._told | {role: path for path, role in self.habits.roles.items()}

    def _make_parameters(self) -> None:
        """Have a layer that makes its parameters with the first batch make them.

        That batch has mean 0 and variance 1, which leaves running statistics where they start.
        """
        held = [v for v in vars(self.layer).values() if isinstance(v, dict)]
        empty = any(v is None for d in (vars(self.layer), *held) for v in d.values())
        empty |= any("param" in name and value == {} for name, value in vars(self.layer).items())
        if empty and not any(role_of(n) in LEARNED and v is not None for n, v in self._slots()):
            with contextlib.suppress(TargetFailure):
                guarded(self._call, np.outer([1.0, -1.0], np.ones(self.options.channels)))

    def _slots(self) -> Iterator[tuple[str, Any]]:
        """Paths, and the arrays, tensors or None that they lead to."""
        return ((p.path, p.value) for p in places(self.layer))

    def _as_float(self, dtype: str) -> None:
        import torch

        for path, value in list(self._slots()):
            if is_tensor(value) and value.is_floating_point():
                place(self.layer, path).put(value.detach().to(getattr(torch, dtype)))

    def learnable(self) -> dict[str, NDArray[Any]]:
        return {n: _numpy(v) for n, v in self._slots() if v is not None and size_of(v) == self.options.channels}

    def kept(self) -> dict[str, NDArray[Any]]:
        return self.learnable()

    def set_tensor(self, name: str, value: NDArray[Any]) -> None:
        place(self.layer, name).fill(value)

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        return {r: _numpy(place(self.layer, a).value) for r, a in self._names.items() if r in LEARNED}

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        for role, value in values.items():
            if role in self._names:
                place(self.layer, self._names[role]).fill(value)

    @property
    def tracks(self) -> bool:
        return set(RUNNING) <= set(self._names)

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        if not self.tracks:
            return None
        found = [place(self.layer, self._names[r]).value for r in RUNNING]
        if any(v is None for v in found):
            return None
        mean, var = (np.array(_numpy(v), dtype=np.float64).reshape(-1) for v in found)
        return mean, var

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        for role, value in zip(RUNNING, (mean, var), strict=True):
            if role in self._names:
                place(self.layer, self._names[role]).fill(value)

    @property
    def declared(self) -> dict[str, float]:
        return {
            role: float(value)
            for name, value in vars(self.layer).items()
            if (role := role_of(name)) in ("eps", "momentum") and isinstance(value, (int, float))
        }


def method(layer: Any, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """The first of the methods of these names that an object or a class has."""
    return next((found for found in (getattr(layer, name, None) for name in names) if callable(found)), None)


def _bare(path: str) -> bool:
    """Whether a name is only "mean" or "var": a layer may keep the batch's under it."""
    return path.rpartition(".")[2].strip("_") in ("mean", "var")


def _numpy(value: Any) -> NDArray[Any]:
    return np.array(value.detach().numpy() if is_tensor(value) else value)
