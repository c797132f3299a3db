"""Names of networks: what they mean, found out without importing torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from normlab.errors import UsageError, targets
from normlab.models.given import given, is_given
from normlab.models.libraries import LIBRARIES, factory_of
from normlab.norms.family import parse

AS_IT_IS = "keep"  # what may stand for a norm where a network has norms of its own
FROZEN, BARE = "frozen", "none"  # norms that a network of its own norms is built with otherwise than with the others
SHORTCUTS = ("projection", "zero-padding")


def check_model(spec: str) -> None:
    """Raise UsageError if there is no network of this name."""
    if own_factory(spec) is None:
        parse_resnet(spec)


def parse_resnet(spec: str) -> tuple[int, dict[str, Any]]:
    """Split "resnet14:width=8" into 14 and {"width": 8}; raises UsageError on anything else."""
    name, _, rest = spec.partition(":")
    match = re.fullmatch(r"resnet(\d+)", name)
    if match is None:
        raise UsageError(
            f"model {spec!r} is not known; expected resnet8, resnet14, resnet20, ..., or a factory of your own: "
            + targets.FORMS
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
    """The factory of the user's own that a name stands for, or None if it is of another form.

    Raises UsageError where there is no such factory (`normlab.errors.targets`).
    """
    at_hand: Callable[..., Any] | None = given(spec)
    if at_hand is not None:
        return at_hand
    library, _, name = spec.partition(":")
    if library in LIBRARIES:
        return factory_of(library, name)
    if own_place(spec) is None:
        return None
    factory: Callable[..., Any] = targets.load(spec, "model")
    if not callable(factory):
        raise UsageError(f"model {spec!r}: this is a {type(factory).__name__}; expected a function or a class")
    return factory


def own_place(spec: str) -> str | None:
    """The module or file of a model of the user's own, or None for the built-in ones."""
    place, name = targets.split(spec)
    if not name or "=" in name or place in LIBRARIES or re.fullmatch(r"resnet\d+", place):
        return None
    return place


def is_code(spec: str) -> bool:
    """Whether a name stands for code of the user's own, which is not run unasked."""
    return is_given(spec) or own_place(spec) is not None


def norm_called(spec: str) -> str:
    """The name that a norm has in the registry, whichever alias and options are written; "keep" is itself."""
    return spec if spec == AS_IT_IS else parse(spec)[0].name


def is_foreign(spec: str) -> bool:
    """Whether a network was written elsewhere, by the user or in a library."""
    return is_code(spec) or spec.partition(":")[0] in LIBRARIES


def check_norm(spec: str) -> None:
    """Raise UsageError if this can be no norm of a comparison."""
    if spec != AS_IT_IS:
        parse(spec)
