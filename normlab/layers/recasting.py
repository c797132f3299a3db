"""A module that goes on as a subclass of its own class: the same object, the same state, another forward pass.

So it still *is* what it was for code that asks for its class, keeps every attribute and method, and has a way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


class Recast:
    """What comes before the module's own class; subclasses of this one define methods that come before its own."""

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles find the class by what it was made of
        if not _is_recast(type(self)):
            return super().__reduce_ex__(protocol)
        mixin, own = type(self).__bases__
        return _blank, (mixin, own), self.__getstate__()


def _subclass(mixin: type, own: Any) -> Any:
    if (mixin, own) not in _made:
        facts: dict[str, Any] = {"__doc__": own.__doc__, "__module__": own.__module__, "__qualname__": own.__qualname__}
        if "forward" in vars(mixin):
            facts["forward"] = _with_signature(vars(mixin)["forward"], own.forward)
        _made[mixin, own] = type(own.__name__, (mixin, own), facts)
    return _made[mixin, own]


def _with_signature(function: FunctionType, like: Any) -> FunctionType:
    """The same function with the signature of another, which torch.fx and many a library go by."""
    code, names = function.__code__, function.__globals__
    signed = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    signed.__kwdefaults__ = function.__kwdefaults__
    vars(signed)["__wrapped__"] = like
    return signed


_made: dict[tuple[type, type], type] = {}


def _blank(mixin: type[Recast], own: type) -> Any:
    return object.__new__(_subclass(mixin, own))


def recast(module: nn.Module, mixin: type[Recast]) -> None:
    """Put a mixin before a module's class, in place."""
    _change(module, lambda kind: _subclass(mixin, kind))


def undo(module: nn.Module, mixin: type[Recast]) -> None:
    """Take a mixin out again, in place: what others were put before the class stays."""
    _change(module, lambda kind: _strip_mixin(kind, mixin))


def become(module: nn.Module, own: type[nn.Module]) -> None:
    """Give a module another class of its own, in place, behind the mixins that it has."""
    _change(module, lambda kind: _find_base(kind, own))


@contextmanager
def without_mixin(module: nn.Module, mixin: type[Recast]) -> Iterator[None]:
    """The module without a mixin, for a while."""
    kind = type(module)
    undo(module, mixin)
    try:
        yield
    finally:
        module.__class__ = kind


def _change(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change a module's class; where torch parametrizes it, the class that this derives from: torch takes its off."""
    kind: Any = type(module)
    if not parametrize.is_parametrized(module):
        module.__class__ = change(kind)
        return
    facts = {name: fact for name, fact in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, (change(kind.__bases__[0]),), facts)


def _is_recast(kind: type) -> bool:
    return _made.get(kind.__bases__) is kind  # type: ignore[arg-type]


def _strip_mixin(kind: type, mixin: type) -> Any:
    if not _is_recast(kind):
        return kind
    outer, inner = kind.__bases__
    return inner if outer is mixin else _subclass(outer, _strip_mixin(inner, mixin))


def _find_base(kind: type, own: type) -> Any:
    return _subclass(kind.__bases__[0], _find_base(kind.__bases__[1], own)) if _is_recast(kind) else own
