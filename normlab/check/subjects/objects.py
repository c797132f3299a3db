"""Layer objects written in NumPy: a class with forward(x[, training]) and backward(dy), as courses build them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import (
    Options,
    Subject,
    TargetFailure,
    Unsupported,
    answered,
    call_by_roles,
    guarded,
    role_of,
)

LEARNED = ("weight", "bias", "gate")


class ObjectSubject(Subject):
    """An object with attributes gamma and beta (or their other names) and gradients beside them (dgamma, dbeta)."""

    form = "NumPy layer object"
    home = "teaching"
    dtypes = ("float64", "float32", "float16")

    def __init__(self, name: str, cls: Callable[..., Any], options: Options) -> None:
        self.name, self.cls, self.options = name, cls, options
        self.layer, self.settable = call_by_roles(cls, options)
        self._role_names: dict[str, str] = {}
        for attribute, value in vars(self.layer).items():
            role = role_of(attribute)
            if role in (*LEARNED, "running_mean", "running_var") and role and np.size(value) == options.channels:
                self._role_names.setdefault(role, attribute)
        arguments = list(inspect.signature(self.layer.forward).parameters)
        self._training = next((a for a in arguments if role_of(a) == "training"), None)
        self._answer: Any = None

    def fresh(self, **changes: Any) -> ObjectSubject:
        missing = {k for k in changes if k != "dtype" and changes[k] is not None} - self.settable - {"groups"}
        if missing:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        return ObjectSubject(self.name, self.cls, replace(self.options, **changes))

    def forward(self, x: NDArray, training: bool) -> NDArray:
        arguments: dict[str, Any] = {}
        if self._training == "mode":
            arguments["mode"] = "train" if training else "test"
        elif self._training:
            arguments[self._training] = training
        else:
            for name in ("training", "train_mode", "is_training"):
                if hasattr(self.layer, name) and not callable(getattr(self.layer, name)):
                    setattr(self.layer, name, training)
        answer = guarded(self.layer.forward, np.array(x), **arguments)
        return answered(answer[0] if isinstance(answer, tuple) else answer, x.shape).copy()

    def backward(self, dy: NDArray) -> dict[str, NDArray]:
        answer = guarded(self.layer.backward, np.array(dy))
        parts = answer if isinstance(answer, tuple) else (answer,)
        out = {"x": answered(parts[0], dy.shape).copy()}
        learned = [r for r in LEARNED if r in self._role_names]
        for role, given in zip(learned, parts[1:], strict=False):
            out[role] = np.asarray(given, dtype=np.float64).reshape(-1)
        for role in learned:
            if role not in out:
                out[role] = self._gradient(self._role_names[role])
        return out

    def _gradient(self, attribute: str) -> NDArray:
        spellings = (f"d{attribute}", f"d_{attribute}", f"{attribute}_grad", f"grad_{attribute}")
        for name in spellings:
            if getattr(self.layer, name, None) is not None:
                return np.array(getattr(self.layer, name), dtype=np.float64).reshape(-1)
        raise TargetFailure(
            f"backward left no gradient of {attribute}: expected it returned after dx or as {spellings[0]}"
        )

    @property
    def parameters(self) -> dict[str, NDArray]:
        return {r: np.array(getattr(self.layer, a)) for r, a in self._role_names.items() if r in LEARNED}

    def _set(self, role: str, value: NDArray) -> None:
        if role in self._role_names:
            name = self._role_names[role]
            old = np.asarray(getattr(self.layer, name))
            setattr(self.layer, name, np.array(value, dtype=old.dtype).reshape(old.shape))

    def set_parameters(self, values: dict[str, NDArray]) -> None:
        for role, value in values.items():
            self._set(role, value)

    @property
    def running(self) -> tuple[NDArray, NDArray] | None:
        if not {"running_mean", "running_var"} <= set(self._role_names):
            return None
        mean, var = (
            np.array(getattr(self.layer, self._role_names[r]), dtype=np.float64).reshape(-1)
            for r in ("running_mean", "running_var")
        )
        return mean, var

    def set_running(self, mean: NDArray, var: NDArray) -> None:
        self._set("running_mean", mean)
        self._set("running_var", var)

    @property
    def declared(self) -> dict[str, float]:
        return {
            role: float(value)
            for name, value in vars(self.layer).items()
            if (role := role_of(name)) in ("eps", "momentum") and isinstance(value, (int, float))
        }
