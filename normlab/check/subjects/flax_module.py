"""Flax layers under test: the nnx modules, channels last."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import Options, Subject, Unsupported, call_by_roles, checked_output, guarded
from normlab.errors import UsageError

NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


class FlaxSubject(Subject):
    """A flax.nnx module class."""

    form = "Flax layer"
    home = "flax"
    channel_axis = -1
    dtypes = ("float64", "float32")

    def __init__(self, name: str, target: Any, options: Options) -> None:
        jax, nnx = import_module("jax"), import_module("flax.nnx")

        if not (isinstance(target, type) and issubclass(target, nnx.Module)):
            raise UsageError(f"{name}: of Flax, classes of flax.nnx are supported (not flax.linen, not instances)")
        jax.config.update("jax_enable_x64", True)
        self.name, self.target, self.options = name, target, options

        def build(**arguments: Any) -> Any:
            return target(param_dtype=options.dtype, rngs=nnx.Rngs(0), **arguments)

        self.layer, settable = call_by_roles(build, options, like=vars(target)["__init__"], given=("self", "rngs"))
        self.settable = settable - {"affine"}
        self._last: Any = None

    def fresh(self, **changes: Any) -> FlaxSubject:
        missing = {k for k in changes if k != "dtype" and changes[k] is not None} - self.settable - {"groups"}
        if missing:
            raise Unsupported(f"the target takes no {', '.join(sorted(missing))}")
        return FlaxSubject(self.name, self.target, replace(self.options, **changes))

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        jnp = import_module("jax.numpy")

        given = jnp.asarray(np.array(x, dtype=self.options.dtype))
        mode = {"use_running_average": not training} if hasattr(self.layer, "mean") else {}
        before = self._values()
        y = guarded(self.layer, given, **mode)
        self._last = (given, mode, before)
        return checked_output(np.asarray(y), x.shape).copy()

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        jax, jnp, nnx = (import_module(m) for m in ("jax", "jax.numpy", "flax.nnx"))

        x, mode, values = self._last
        roles = [r for r in ("weight", "bias") if r in values]
        graph, state = nnx.split(self.layer)

        def run(given: Any, *learned: Any) -> Any:
            pure = nnx.to_pure_dict(state)
            for role, value in {**values, **dict(zip(roles, learned, strict=True))}.items():
                pure[NAMES[role]] = value
            inner = jax.tree.map(lambda leaf: leaf, state)  # variables of this trace
            nnx.replace_by_pure_dict(inner, pure)
            return nnx.merge(graph, inner)(given, **mode)

        _, pull = guarded(jax.vjp, run, x, *(values[r] for r in roles))
        grads = pull(jnp.asarray(np.array(dy, dtype=self.options.dtype)))
        return {
            k: np.asarray(g) if k == "x" else np.asarray(g).reshape(-1)
            for k, g in zip(["x", *roles], grads, strict=True)
        }

    @property
    def tape(self) -> Any:
        return self._last

    @tape.setter
    def tape(self, tape: Any) -> None:
        self._last = tape

    def _values(self) -> dict[str, Any]:
        found = {}
        for role, name in NAMES.items():
            variable = getattr(self.layer, name, None)
            value = getattr(variable, "value", None)
            if value is not None:
                found[role] = value
        return found

    def _set(self, role: str, value: NDArray[Any]) -> None:
        jnp = import_module("jax.numpy")

        variable = getattr(self.layer, NAMES[role])
        variable.value = jnp.asarray(np.reshape(value, variable.value.shape).astype(self.options.dtype))

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        found = self._values()
        return {r: np.array(found[r]) for r in ("weight", "bias") if r in found}

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        for role in self.parameters:
            if role in values:
                self._set(role, values[role])

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        found = self._values()
        if "running_mean" not in found:
            return None
        return np.array(found["running_mean"], dtype=np.float64), np.array(found["running_var"], dtype=np.float64)

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        self._set("running_mean", mean)
        self._set("running_var", var)

    @property
    def declared(self) -> dict[str, float]:
        names = {"eps": "epsilon", "momentum": "momentum"}
        return {r: float(v) for r, n in names.items() if isinstance(v := getattr(self.layer, n, None), (int, float))}
