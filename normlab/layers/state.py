"""What a module remembers: noted before its forward pass is followed, compared after, and put back."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

_PLAIN = bool | int | float | complex | str | bytes | None
_CHANGES = (list, dict, set, deque)
_CONTAINERS = (*_CHANGES, tuple, frozenset)
_CLOSED = type | ModuleType | FunctionType | BuiltinFunctionType | MethodType | nn.Module | Tensor | fx.Proxy | fx.Node
_TABLES = ("_parameters", "_buffers", "_modules")
_NOT_ITS_OWN = {*vars(nn.Module()), "_inputs", "_shortcuts", "_fused_spots", "_plan", "_names", "_was"}


def contents(module: nn.Module) -> dict[str, list[Any]]:
    """What the containers among a module's attributes contain: numbers and text, and which other objects."""
    held = ((k, v) for k, v in vars(module).items() if isinstance(v, _CONTAINERS) and k not in _NOT_ITS_OWN)
    return {k: [fact for _, fact in _reach([v], _contained)] for k, v in held}


class Memory:
    """What a module and its parts hold, down to what lies in their containers and objects.

    A generator, an array or another object without a `__dict__` is noticed when it changes, and not put back.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
        reached = list(self._reach())
        self.facts = [fact for _, fact in reached]
        tables = [vars(part)[name] for part in self.parts for name in _TABLES]
        held = [v for v, _ in reached if isinstance(v, _CHANGES)]
        self.held = [(v, v.copy()) for v in (*map(vars, self.parts), *tables, *held)]
        self.tensors = [(v, fact[1], v.detach().clone()) for v, fact in reached if isinstance(v, Tensor)]

    def _reach(self) -> Iterator[tuple[Any, Any]]:
        roots: list[Any] = []
        for part in self.parts:
            roots += (v for item in vars(part).items() if item[0] not in _NOT_ITS_OWN for v in item)
            roots += ((name, k, id(v)) for name in _TABLES for k, v in vars(part)[name].items())
        return _reach(roots, _held)

    def changed(self) -> bool:
        """Whether anything is not what it was."""
        return [fact for _, fact in self._reach()] != self.facts

    def put_back(self) -> None:
        """Give every container and every object what it held: the same objects, in place."""
        for held, kept in self.held:
            held.clear()
            held.extend(kept) if isinstance(held, list | deque) else held.update(kept)
        for tensor, version, kept in self.tensors:
            if _version(tensor) != version:
                with torch.no_grad():
                    tensor.copy_(kept)


def _reach(roots: list[Any], parts_of: Callable[[Any], Iterable[Any]]) -> Iterator[tuple[Any, Any]]:
    """(object, what is noted of it) for all that can be reached; what is met again is not entered again."""
    waiting, entered = [*reversed(roots)], set()
    while waiting:
        v = waiting.pop()
        if isinstance(v, _PLAIN):
            yield v, v
        elif isinstance(v, Tensor):
            yield v, (id(v), _version(v))
        elif id(v) in entered:
            yield None, id(v)
        else:
            entered.add(id(v))
            parts = list(parts_of(v))
            yield v, (type(v), len(parts)) if isinstance(v, tuple) else (id(v), len(parts))
            waiting.extend(reversed(parts))


def _contained(v: Any) -> Iterable[Any]:
    if isinstance(v, dict):
        return (part for item in v.items() for part in item)
    return v if isinstance(v, _CONTAINERS) else ()


def _held(v: Any) -> Iterable[Any]:
    """What lies in a container or an object; of an object that shows nothing, what pickling it gives."""
    if isinstance(v, _CLOSED):
        return ()
    attributes = getattr(v, "__dict__", None)
    if isinstance(attributes, dict):
        return (*_contained(v), attributes)
    if isinstance(v, _CONTAINERS):
        return _contained(v)
    try:
        return (pickle.dumps(v),)
    except Exception:  # anybody's object
        return ()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
