"""What is to be known of a trained network besides its weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from normlab.data import SIXTEEN_BITS
from normlab.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What a trained network is, as plain values that fit into a file.

    `settings` is the cell that was trained, by the columns of the records; `metrics` has the last epoch's validation
    figures and those of the test split; `versions` says what it was trained with; `data` has the name and the hash of
    the images; `levels` are the pixels of 16-bit images that become 0 and 255.
    """

    model: str
    norm: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: tuple[int, int] = SIXTEEN_BITS
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Facts:
        """The facts in a file's header. Raises DataError for what is none, naming the field."""
        if not isinstance(given, Mapping):
            raise DataError(f"expected an object, got {_named(given)}")
        known = {one.name for one in fields(cls)}
        for missing in [name for name in _REQUIRED if name not in given]:
            raise DataError(f"{missing} is missing")
        for unknown in [name for name in given if name not in known]:
            raise DataError(f"{unknown!r} is not known; a newer normlab may have written it")
        found = {name: _READERS[name](name, value) for name, value in given.items()}
        channels = found["image_shape"][0]
        for name in ("mean", "std"):
            if len(found[name]) != channels:
                raise DataError(f"{name} has {len(found[name])} numbers, but image_shape has {channels} channels")
        return cls(**found)


_REQUIRED = ("model", "norm", "class_names", "image_shape", "mean", "std")


def _text(name: str, value: Any) -> str:
    if not value:
        raise DataError(f"{name} is {_named(value)}; expected text")
    return _line(name, value)


def _line(name: str, value: Any) -> str:
    """Text that may be empty: the name of a class is its user's."""
    if not isinstance(value, str):
        raise DataError(f"{name} is {_named(value)}; expected text")
    try:
        value.encode(errors="surrogateescape")  # which a file's name may need
    except UnicodeEncodeError:
        raise DataError(f"{name} is {_named(value)}; expected text that UTF-8 can hold") from None
    return value


def _number(name: str, value: Any) -> float:
    huge = isinstance(value, int) and abs(value) > sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, int | float) or huge:
        raise DataError(f"{name} is {_named(value)}; expected a number")
    return value


def _finite(name: str, value: Any) -> float:
    if not math.isfinite(_number(name, value)):
        raise DataError(f"{name} is {value}; expected a finite number")
    return float(value)


def _positive(name: str, value: Any) -> float:
    if _finite(name, value) <= 0:
        raise DataError(f"{name} is {value}; expected more than 0")
    return float(value)


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} is {_named(value)}; expected a whole number from {low} to {high}")
        return value

    return read


def _several(read: Callable[[str, Any], T], count: int | None = None) -> Callable[[str, Any], tuple[T, ...]]:
    """A list of at least one, or of so many."""

    def read_all(name: str, value: Any) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or len(value) != (count or len(value) or 1):
            wanted = f"{count} of them" if count else "at least one"
            raise DataError(f"{name} is {_named(value)}; expected a list, of {wanted}")
        return tuple(read(f"{name}[{place}]", entry) for place, entry in enumerate(value))

    return read_all


def _mapping(read: Callable[[str, Any], T]) -> Callable[[str, Any], dict[str, T]]:
    def read_all(name: str, value: Any) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise DataError(f"{name} is {_named(value)}; expected an object")
        return {_text(f"a name in {name}", key): read(f"{name}.{key}", entry) for key, entry in value.items()}

    return read_all


def _rising(name: str, value: Any) -> tuple[int, ...]:
    low, high = found = _several(_whole(0, 65535), 2)(name, value)
    if low >= high:
        raise DataError(f"{name} is {list(found)}; expected the lower one first")
    return found


def _settings(name: str, value: Any) -> dict[str, Any]:
    """A cell by the columns of the records; of these the network is made with one number."""
    found = _mapping(lambda _, entry: entry)(name, value)
    if found.get("dropout") is not None and not 0 <= _finite(f"{name}.dropout", found["dropout"]) < 1:
        raise DataError(f"{name}.dropout is {found['dropout']}; expected a share from 0, below 1")
    return found


def _named(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "model": _text,
    "norm": _text,
    "class_names": _several(_line),
    "image_shape": _several(_whole(1, 65535), 3),
    "mean": _several(_finite),
    "std": _several(_positive),
    "levels": _rising,
    "settings": _settings,
    "metrics": _mapping(_number),
    "data": _mapping(_text),
    "versions": _mapping(_text),
}
