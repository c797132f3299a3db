"""What is handed over as a Python object, a network, its factory or a transform, under a name that can be written down.

A name is that of the function or class and a digest: of what a factory says and holds, of the weights and the parts of
a module (`normlab.models.digest`). So the same network has the same name in the next session, and another one another.
A name that is not at hand (a study that is opened elsewhere) says so; nothing is imported for it.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from normlab.errors import UsageError
from normlab.models.digest import digest

_GIVEN: dict[str, Any] = {}
_NAME = re.compile(r"[\w.<>-]+@[0-9a-f]{8}")


def give(model: Any, what: str = "model") -> str:
    """Register a factory, a module or a transform in this process, and return its name; `what` is the argument's.

    Raises UsageError if it is none of them, or if only its address in memory distinguishes it from others.
    """
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '', title(model, what)) or 'network'}@{digest(model)[:8]}"
    _GIVEN[name] = model
    return name


def title(model: Any, what: str = "model") -> str:
    """What to call a factory, a module or a transform in a message. Raises UsageError if it cannot be called."""
    if not callable(model):
        kinds = "a function that makes a network, or a torch.nn.Module" if what == "model" else "a function of images"
        raise UsageError(f"{what} is {model!r}; expected a name, {'' if what == 'model' else 'or '}{kinds}")
    if isinstance(model, functools.partial):
        return title(model.func)
    return str(getattr(model, "__name__", type(model).__name__))


def given(name: str) -> Any | None:
    """The object that was given under a name; None if the name is of another form.

    Raises UsageError for a name of this form that was not given in this process.
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} was handed over as a Python object and is not at hand in this process; hand it over again: "
            "model=..., augment=..."
        )
    return None


def is_given(name: str) -> bool:
    """Whether a name has the form of an object's, given in this process or not."""
    return _NAME.fullmatch(name) is not None
