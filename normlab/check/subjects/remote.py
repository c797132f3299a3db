"""A layer in another process: what it is asked goes there, and arrays come back."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import Habits, Options, Subject, TargetFailure, Unsupported, checked_output
from normlab.errors import NormlabError, UsageError


class Line(Protocol):
    """The way to the other process."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its reply."""


def result(reply: dict[str, Any]) -> Any:
    """The value of a reply; raises what the other process raised."""
    if "raised" not in reply:
        return reply.get("value")
    name, said, original = str(reply["raised"]), str(reply.get("said")), reply.get("original")
    if name == "usage":
        raise (UsageError if reply.get("code") == UsageError.exit_code else NormlabError)(said)
    if name == "TargetFailure":
        cause = type(original, (Exception,), {})(said) if isinstance(original, str) else None
        raise TargetFailure(said, cause)
    if name == "Unsupported":
        raise Unsupported(said)
    kind = getattr(builtins, name, None)
    raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(said)


def _remote_property(name: str, kind: Callable[[Any], Any]) -> Any:
    """A property that is asked for."""
    return property(lambda self: kind(self._get(name)))


class RemoteSubject(Subject):
    """One layer of the other process, by its number there.

    What comes back is of no use to the other side unless it is what the layer really returned: shapes and types are
    looked at here, and values are compared here.
    """

    home = _remote_property("home", str)
    class_name = _remote_property("class_name", str)
    has_backward = _remote_property("has_backward", bool)
    tracks = _remote_property("tracks", bool)
    cumulative = _remote_property("cumulative", bool)
    free_momentum = _remote_property("free_momentum", bool)
    inherits_options = _remote_property("inherits_options", bool)
    rounding = _remote_property("rounding", float)
    dtypes = _remote_property("dtypes", tuple)
    declared_shape = _remote_property("declared_shape", lambda v: None if v is None else tuple(int(n) for n in v))

    def __init__(self, line: Line, told: dict[str, Any], options: Options, habits: Habits, dead: list[int]) -> None:
        self._line, self._dead, self.habits = line, dead, habits
        try:
            self._number, self._axis = int(told["number"]), int(told["channel_axis"])
            self.form, self.name = str(told["form"]), str(told["name"])
            self.settable = frozenset(map(str, told["settable"]))
            self.options = replace(options, channels=int(told["channels"]), groups=int(told["groups"]))
        except (KeyError, TypeError, ValueError) as e:
            raise TargetFailure("sent something that describes no layer") from e

    @classmethod
    def loaded(cls, line: Line) -> RemoteSubject:
        """The target of the other process; raises TargetFailure and UsageError as it does."""
        told = _require_type(dict, result(line.ask({"op": "load", "given": {}})), "a layer")
        return cls(line, told, Options(), Habits(), [])

    def _request(self, op: str, **given: Any) -> Any:
        dead, self._dead[:] = list(self._dead), []
        reply = self._line.ask({"op": op, "drop": dead, "habits": asdict(self.habits), "given": given})
        for name, value in (reply.get("habits") or {}).items():
            if name in vars(self.habits):
                kept: Any = {"full_ranks": set, "unknown": list, "roles": dict}.get(name, lambda v: v)
                setattr(self.habits, name, kept(value))
        return result(reply)

    def _get(self, name: str) -> Any:
        return self._request("get", of=self._number, name=name)

    def _call(self, name: str, *given: Any) -> Any:
        return self._request("call", of=self._number, name=name, given=given)

    def __getattr__(self, name: str) -> Any:
        """What only some targets declare about themselves."""
        if name in ("roles", "running_names", "declares_groups", "stores_float32"):
            return self._get(name)
        raise AttributeError(name)

    def __del__(self) -> None:
        if vars(self).get("_number"):
            self._dead.append(self._number)

    def fresh(self, **changes: Any) -> RemoteSubject:
        told = _require_type(dict, self._request("fresh", of=self._number, changes=changes), "a layer")
        return RemoteSubject(self._line, told, replace(self.options, **changes), self.habits, self._dead)

    def forward(self, x: NDArray[Any], training: bool) -> NDArray[Any]:
        return checked_output(_require_type(np.ndarray, self._call("forward", x, training), "an array"), x.shape)

    def backward(self, dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
        found = _arrays(self._call("backward", dy))
        checked_output(found.get("x"), dy.shape)
        return found

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        return _arrays(self._get("parameters"))

    def set_parameters(self, values: dict[str, NDArray[Any]]) -> None:
        self._call("set_parameters", values)

    @property
    def running(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        found = self._get("running")
        if found is None:
            return None
        if len(_require_type(tuple, found, "running mean and variance")) != 2:
            raise TargetFailure("keeps no running mean and variance")
        mean, var = (np.asarray(_require_type(np.ndarray, v, "an array"), dtype=np.float64).reshape(-1) for v in found)
        return mean, var

    def lines(self, x: NDArray[Any]) -> int:
        return int(self._call("lines", x))

    @property
    def given(self) -> NDArray[Any] | None:
        found = self._get("given")
        return None if found is None else np.asarray(_require_type(np.ndarray, found, "an array"))

    def set_running(self, mean: NDArray[Any], var: NDArray[Any]) -> None:
        self._call("set_running", mean, var)

    def learnable(self) -> dict[str, NDArray[Any]]:
        return _arrays(self._call("learnable"))

    def kept(self) -> dict[str, NDArray[Any]]:
        return _arrays(self._call("kept"))

    def set_tensor(self, name: str, value: NDArray[Any]) -> None:
        self._call("set_tensor", name, value)

    @property
    def declared(self) -> dict[str, float]:
        return {str(k): float(v) for k, v in _require_type(dict, self._get("declared"), "eps and momentum").items()}

    @property
    def channel_axis(self) -> int:
        return self._axis

    @channel_axis.setter
    def channel_axis(self, axis: int) -> None:
        self._axis = axis
        self._request("set", of=self._number, name="channel_axis", value=axis)


def _require_type(kind: type, value: Any, expected: str) -> Any:
    if not isinstance(value, kind):
        raise TargetFailure(f"returned {type(value).__name__} where {expected} belongs")
    return value


def _arrays(found: Any) -> dict[str, NDArray[Any]]:
    return {
        str(k): _require_type(np.ndarray, v, "an array")
        for k, v in _require_type(dict, found, "arrays by name").items()
    }
