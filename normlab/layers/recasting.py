"""A module that goes on as a subclass of its own class: the same object, the same state, another forward pass.

So it still *is* what it was for whoever asks for its class, keeps every attribute and method, and has a way back.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn


class Recast:
    """What comes before the module's own class; subclasses of this one define methods that come before its own."""

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles find the class by what it was made of
        mixin, own = type(self).__bases__
        return _blank, (mixin, own), self.__getstate__()


def _subclass(mixin: type, own: Any) -> Any:
    if (mixin, own) not in _made:
        facts: dict[str, Any] = {"__doc__": own.__doc__, "__module__": own.__module__, "__qualname__": own.__qualname__}
        if "forward" in vars(mixin):
            facts["forward"] = _signed(vars(mixin)["forward"], own.forward)
        _made[mixin, own] = type(own.__name__, (mixin, own), facts)
    return _made[mixin, own]


def _signed(function: FunctionType, like: Any) -> FunctionType:
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
    module.__class__ = _subclass(mixin, type(module))


def undo(module: nn.Module, mixin: type[Recast]) -> None:
    """Take a mixin out again, in place: what others were put before the class stays."""
    module.__class__ = _without(type(module), mixin)


def become(module: nn.Module, own: type[nn.Module]) -> None:
    """Give a module another class of its own, in place, behind the mixins that it has."""
    module.__class__ = _behind_mixins(type(module), own)


def _is_made(kind: type) -> bool:
    return _made.get(kind.__bases__) is kind  # type: ignore[arg-type]


def _without(kind: type, mixin: type) -> Any:
    outer, inner = kind.__bases__
    return inner if outer is mixin else _subclass(outer, _without(inner, mixin))


def _behind_mixins(kind: type, own: type) -> Any:
    return _subclass(kind.__bases__[0], _behind_mixins(kind.__bases__[1], own)) if _is_made(kind) else own
