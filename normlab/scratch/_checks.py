"""Checks of arguments that every function of the engine shares: each message names what is wrong and the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normlab.errors import UsageError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def floats(name: str, value: Any, shape: Sequence[int | str] | None = None) -> np.ndarray:
    """Returns `value` as a float32 or float64 array, untouched where it is one; integers become float64.

    `shape` holds an integer where the size is known and a name ("N") where any size will do.
    """
    array = np.asarray(value)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype not in FLOATS:
        raise UsageError(
            f"{name} must be an array of float32 or float64, got dtype {array.dtype}; convert it with astype"
        )
    if shape is not None:
        check_shape(name, array, shape)
    return array


def like(name: str, value: Any, x: np.ndarray, shape: Sequence[int | str]) -> np.ndarray:
    """Returns `value` as an array of `shape` in the dtype of `x`, so that nothing is ever upcast."""
    return floats(name, value, shape).astype(x.dtype, copy=False)


def check_shape(name: str, array: np.ndarray, shape: Sequence[int | str]) -> None:
    """Raises unless `array` has `shape`; a name in place of a size matches any size."""
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "")
        raise UsageError(f"{name} has shape {array.shape}; expected ({expected})")


def labels(name: str, value: Any, count: int, num_classes: int) -> np.ndarray:
    """Returns `value` as `count` integer labels in [0, num_classes)."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise UsageError(f"{name} must hold integer labels, got dtype {array.dtype}")
    check_shape(name, array, (count,))
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        raise UsageError(
            f"{name} holds labels from {array.min()} to {array.max()}; expected 0 to {num_classes - 1}, "
            f"as there are {num_classes} classes"
        )
    return array


def integer(name: str, value: Any, minimum: int) -> int:
    """Returns `value` as an int of at least `minimum`; 2.0 and numpy integers are integers, 2.5 is not."""
    try:
        number = int(value)
        exact = number == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or number < minimum:
        raise UsageError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return number


def number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """Returns `value` as a Python float in [low, high], or (low, high] where `open_low`.

    A Python float never upcasts a float32 array, a `numpy.float64` does.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if not (low < result <= high if open_low else low <= result <= high):
        bracket = "(" if open_low else "["
        raise UsageError(f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value!r}")
    return result


def required(name: str, options: Mapping[str, Any], key: str) -> Any:
    """Returns `options[key]`, naming the dictionary where the key is missing."""
    if key not in options:
        raise UsageError(f"{name} has no {key!r}; got the keys {sorted(options)}")
    return options[key]


def one_of(name: str, value: Any, choices: Sequence[str | None]) -> Any:
    """Returns `value` if it is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise UsageError(f"{name} must be one of {listed}, got {value!r}")
    return value


def eps(name: str, options: Mapping[str, Any]) -> float:
    """Returns `options["eps"]`, the number added to a variance (default 1e-5)."""
    return number(f"{name}['eps']", options.get("eps", 1e-5), 0, float("inf"))
