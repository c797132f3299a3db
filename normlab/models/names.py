"""Names of networks: what they mean, found out without importing torch."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normlab.errors import UsageError

SHORTCUTS = ("projection", "zero-padding")


def check_model(spec: str) -> None:
    """Raise UsageError if `normlab.models.build_model` would not know this name."""
    if own_factory(spec) is None:
        parse_resnet(spec)


def source_of(spec: str) -> Path | None:
    """The file that a user's own model lives in, or None for the built-in ones."""
    if own_factory(spec) is None:
        return None
    file = sys.modules[spec.partition(":")[0]].__file__
    return None if file is None else Path(file)


def import_from_here(module: str, what: str) -> Any:
    """Import a module by name, the working directory included; raises UsageError saying what was asked for."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(f"{what}: cannot import {module!r} ({e}); is it installed, or in {here}?") from e


def parse_resnet(spec: str) -> tuple[int, dict[str, Any]]:
    """Split "resnet14:width=8" into 14 and {"width": 8}; raises UsageError on anything else."""
    name, _, rest = spec.partition(":")
    match = re.fullmatch(r"resnet(\d+)", name)
    if match is None:
        raise UsageError(
            f"model {spec!r} is not known; expected resnet8, resnet14, resnet20, ... or package.module:factory"
        )
    depth = int(match[1])
    if depth < 8 or (depth - 2) % 6:
        raise UsageError(f"model {name!r}: the depth must be 6n + 2, as in resnet8, resnet14, resnet20")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(":")):
        key, _, value = item.partition("=")
        if key == "shortcut" and value in SHORTCUTS:
            options[key] = value
        elif key == "width" and value.isdigit() and int(value) > 0:
            options[key] = int(value)
        else:
            raise UsageError(
                f"model {spec!r}: {item!r} is not an option; "
                f"expected shortcut={'|'.join(SHORTCUTS)} or width=<channels>"
            )
    return depth, options


def own_factory(spec: str) -> Callable[..., Any] | None:
    """The factory that "package.module:factory" names, or None if the spec is of another form."""
    module, colon, name = spec.partition(":")
    if not colon or "=" in name or re.fullmatch(r"resnet\d+", module):
        return None
    factory = getattr(import_from_here(module, f"model {spec!r}"), name, None)
    if not callable(factory):
        raise UsageError(f"model {spec!r}: module {module!r} has no function or class {name!r}")
    return factory
