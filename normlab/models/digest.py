"""What a Python object is, as a digest that is the same in the next session, and another one for another object."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from normlab.errors import UsageError

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_SINGLE = (str, bytes, int, float, complex, bool)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), tuple, list, set, frozenset, dict)


def digest(model: Any) -> str:
    """SHA-256 of a factory or a module.

    Of a module, its parts and weights; of a function or class, its source and what it holds besides: the defaults of
    its arguments and the variables of the functions around it. Raises UsageError where only an address differs.
    """
    sha = hashlib.sha256()
    for piece in _pieces(model, {}):
        sha.update(piece)
    return sha.hexdigest()


def _pieces(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """Everything that a value is, in pieces; what comes again is given by its number in `seen`."""
    if hasattr(value, "__dict__"):
        if id(value) in seen:
            yield f"number {seen[id(value)]};".encode()
            return
        seen[id(value)] = len(seen)
    if isinstance(value, type):
        yield from _class(value, seen)
    elif hasattr(value, "state_dict"):
        yield _ADDRESS.sub("", repr(value)).encode()
        for name, one in value.state_dict().items():
            yield from _array(name, one) if _is_array(one) else _pieces((name, one), seen)
        if hasattr(value, "modules"):
            yield from _own_modules(value.modules(), seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, MethodType | BuiltinFunctionType):
        yield value.__name__.encode()
        yield from _pieces([getattr(value, "__func__", None), value.__self__], seen)
    elif isinstance(value, functools.partial):
        yield b"partial"
        yield from _pieces([value.func, value.args, value.keywords], seen)
    elif isinstance(value, ModuleType):
        yield value.__name__.encode()
    elif _is_array(value):
        yield from _array("", value)
    elif isinstance(value, Mapping):
        yield from _several(value, (part for item in value.items() for part in item), seen)
    elif isinstance(value, tuple | list):
        yield from _several(value, value, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(b"".join(_pieces(item, dict(seen))) for item in value)
    else:
        yield from _instance(value, seen)


def _own_modules(modules: Iterable[Any], seen: dict[int, int]) -> Iterator[bytes]:
    """What the classes that are not torch's do, and the numbers and texts that their modules hold."""
    for one in modules:
        if not type(one).__module__.startswith("torch."):
            yield from _pieces(type(one), seen)
            held = {k: v for k, v in vars(one).items() if isinstance(v, _SINGLE) and k[0] != "_" and k != "training"}
            yield repr(sorted(held.items())).encode()


def _several(whole: Mapping[Any, Any] | Sequence[Any], items: Iterable[Any], seen: dict[int, int]) -> Iterator[bytes]:
    yield f"{type(whole).__name__} of {len(whole)};".encode()
    for item in items:
        yield from _pieces(item, seen)


def _instance(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """Any other object: its representation if that says what it is, or its class and attributes."""
    text = repr(value)
    says = _ADDRESS.search(text) is None
    has_attributes = hasattr(value, "__dict__")
    if not says and not has_attributes:
        raise UsageError(
            f"model: it holds {text}, which only its address in memory tells apart, so no other session would know "
            "the model again; expected numbers, text, arrays, functions, networks, or lists of these: make anything "
            "else inside the function"
        )
    if says:
        yield f"{type(value).__qualname__} {text};".encode()
    if has_attributes and (callable(value) or not says):
        yield from _pieces(type(value), seen)
        yield from _pieces(vars(value), seen)


def _function(function: FunctionType, seen: dict[int, int]) -> Iterator[bytes]:
    """A function's source, and what distinguishes it from others of the same source."""
    code = function.__code__
    source = _source(code)
    yield f"{function.__qualname__} ".encode() if source is None else source
    if source is None or function.__name__ == "<lambda>":  # of which a line may have several
        yield from _code(code, seen)
    held: dict[str, Any] = dict(function.__kwdefaults__ or {})
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[f"{name} outside"] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    if function.__defaults__ or held:
        yield from _pieces([function.__defaults__, held], seen)


def _class(kind: type, seen: dict[int, int]) -> Iterator[bytes]:
    """A class's source; of one that a function made, what its functions and attributes hold besides."""
    source = _source(kind)
    yield f"{kind.__module__}.{kind.__qualname__}".encode() if source is None else source
    if kind.__module__ == "builtins" or ("<locals>" not in kind.__qualname__ and source is not None):
        return
    yield from _pieces(kind.__bases__, seen)
    for name, own in vars(kind).items():
        own = getattr(own, "__func__", own)  # of a static method or one of the class
        if isinstance(own, FunctionType) or (isinstance(own, _PLAIN) and not name.startswith("__")):
            yield from _pieces((name, own), seen)


def _source(of: Any) -> bytes | None:
    try:
        return inspect.getsource(of).encode()
    except (OSError, TypeError):
        return None


def _code(code: CodeType, seen: dict[int, int]) -> Iterator[bytes]:
    """What a function does, where its source does not say it."""
    yield code.co_code
    yield repr(code.co_names).encode()
    for value in code.co_consts:
        yield from _code(value, seen) if isinstance(value, CodeType) else _pieces(value, seen)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and (hasattr(value, "detach") or hasattr(value, "tobytes"))


def _array(name: str, value: Any) -> Iterator[bytes]:
    """A tensor's or an array's type, shape and content."""
    yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
    if hasattr(value, "detach"):
        import torch

        yield bytes(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        yield value.tobytes() if value.dtype.kind != "O" else repr(value.tolist()).encode()
