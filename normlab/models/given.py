"""Networks that are handed over as Python objects, a factory or a module, under a name that a study can write down.

A name is that of the function or class and a digest: of the source of a factory, of the weights and the parts of a
module. So the same network has the same name in the next session, and another one another. A name that is not at hand
(a study that is opened elsewhere) says so; nothing is imported for it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from normlab.errors import UsageError

_GIVEN: dict[str, Any] = {}
_NAME = re.compile(r"[\w.<>-]+@[0-9a-f]{8}")


def give(model: Any) -> str:
    """The name under which a factory or a module is known from now on, in this process.

    Raises UsageError if it is neither.
    """
    if not callable(model):
        raise UsageError(f"model is {model!r}; expected a name, a function that makes a network, or a torch.nn.Module")
    title = getattr(model, "__name__", type(model).__name__)
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '', title) or 'network'}@{_digest(model)[:8]}"
    _GIVEN[name] = model
    return name


def given(name: str) -> Any | None:
    """The object that was given under a name; None if the name is of another form.

    Raises UsageError for a name of this form that nobody gave in this process.
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if _NAME.fullmatch(name):
        raise UsageError(
            f"model {name!r} was handed over as a Python object and is not at hand in this process; "
            "hand it over again: model=..."
        )
    return None


def is_given(name: str) -> bool:
    """Whether a name is that of an object, at hand or not."""
    return _NAME.fullmatch(name) is not None


def _digest(model: Any) -> str:
    sha = hashlib.sha256()
    if hasattr(model, "state_dict") and not isinstance(model, type):
        sha.update(repr(model).encode())
        for key, value in model.state_dict().items():
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(_bytes()).numpy().data)
        return sha.hexdigest()
    sha.update(_source(model).encode())
    return sha.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _source(function: Callable[..., Any]) -> str:
    """What a function says; where its source is not to be had, its name and code."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return f"{getattr(function, '__qualname__', type(function))} {code.co_code!r}" if code else repr(function)
