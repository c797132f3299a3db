"""Keras layers under test (with the torch backend gradients too; with others, values alone)."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import (
    Options,
    Subject,
    TargetFailure,
    Unsupported,
    call_by_roles,
    checked_output,
    guarded,
    role_of,
)


class KerasSubject(Subject):
    """A Keras layer, channels last; built for inputs of rank 4."""

    form = "Keras layer"
    home = "keras"
    channel_axis = -1
    dtypes = ("float64", "float32")

    def __init__(self, name: str, target: Any, options: Options) -> None:
        keras = import_module("keras")

        self.name, self.target, self.options = name, target, options
        self.has_backward = keras.backend.backend() == "torch"
        if isinstance(target, type):
            self.layer, settable = call_by_roles(lambda **kw: target(dtype=options.dtype, **kw), options, like=target)
            self.settable = settable | {"channels"}
        else:
            config = target.get_config() | {"dtype": options.dtype}
            self.layer, self.settable = type(target).from_config(config), frozenset({"channels"})
        guarded(self.layer.build, (None, 4, 3, options.channels))
        self._last: Any = None

    def fresh(self, **changes: Any) -> KerasSubject:
        missing = {k for k in changes if k not in ("dtype",) and changes[k] is not None} - self.settable - {"groups"}
        if missing:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        return KerasSubject(self.name, self.target, replace(self.options, **changes))

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        given: Any = np.array(x, dtype=self.options.dtype)
        if self.has_backward:
            import torch

            given = torch.from_numpy(given).requires_grad_(True)
        y = guarded(self.layer, given, training=training)
        self._last = (given, y)
        return checked_output(y.detach().numpy() if self.has_backward else np.asarray(y), x.shape).copy()

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if not self.has_backward:
            raise Unsupported("gradients of Keras layers need KERAS_BACKEND=torch")
        import torch

        from normlab.check.subjects.gradients import gradients

        x, y = self._last
        learned = {r: v.value for r, v in self._variables().items() if r in ("weight", "bias")}
        grads = guarded(gradients, y, [x, *learned.values()], torch.from_numpy(np.array(dy)), keep_graph=True)
        if grads[0] is None:
            raise TargetFailure("has an output without gradient")
        out = {"x": grads[0].numpy()}
        for (role, value), g in zip(learned.items(), grads[1:], strict=True):
            out[role] = np.zeros(value.numel()) if g is None else g.detach().numpy().reshape(-1)
        return out

    @property
    def tape(self) -> Any:
        return self._last

    @tape.setter
    def tape(self, tape: Any) -> None:
        self._last = tape

    def _variables(self) -> dict[str, Any]:
        return {role: v for v in self.layer.variables if (role := role_of(v.name)) is not None}

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        found = self._variables()
        return {r: np.array(found[r].numpy()) for r in ("weight", "bias") if r in found}

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        for role, variable in self._variables().items():
            if role in values:
                variable.assign(np.reshape(values[role], variable.shape).astype(self.options.dtype))

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        found = self._variables()
        if not {"running_mean", "running_var"} <= set(found):
            return None
        mean, var = (np.array(found[r].numpy(), dtype=np.float64) for r in ("running_mean", "running_var"))
        return mean, var

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        found = self._variables()
        found["running_mean"].assign(np.asarray(mean, dtype=self.options.dtype))
        found["running_var"].assign(np.asarray(var, dtype=self.options.dtype))

    @property
    def declared(self) -> dict[str, float]:
        return {
            role: float(value)
            for name in ("epsilon", "momentum")
            if (value := getattr(self.layer, name, None)) is not None and (role := role_of(name))
        }
