"""Labels in any of the forms that people hold them in, as class numbers from 0 and class names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from normlab.data._source import listing
from normlab.data._table import ordered
from normlab.errors import DataError

_MISSING = ("None", "nan", "NaT", "<NA>")  # as Python, NumPy and pandas show what is not there


def refuse_missing(values: Iterable[Any], what: str) -> None:
    """Raise DataError that names the rows without a value; text is a value, whatever it says."""
    rows = [row for row, value in enumerate(values) if not isinstance(value, str) and str(value) in _MISSING]
    if rows:
        raise DataError(f"{what}: {len(rows)} are missing" + listing((f"row {row}" for row in rows), len(rows)))


def one_each(y: Any, what: str) -> np.ndarray:
    """One label per image, as numbers or text (N,)."""
    if hasattr(y, "detach"):
        y = y.detach().cpu().numpy()
    try:
        labels = np.asarray(y)
    except ValueError as error:
        raise DataError(f"{what} are no array ({error}); expected one label per image") from error
    if labels.dtype.kind in "OU" and labels.ndim == 1:
        refuse_missing(y, what)
    if labels.dtype.kind == "O":
        labels = np.asarray([str(label) for label in labels])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and bool(((labels == 0) | (labels == 1)).all()):
        if not bool((labels.sum(1) == 1).all()):
            raise DataError(f"{what} are 0 and 1 of shape {labels.shape}, but not one 1 in each row")
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise DataError(f"{what} have shape {labels.shape}; expected (N,), or one-hot (N, classes)")
    if labels.dtype.kind == "f":
        if not bool(((labels == np.floor(labels)) & (abs(labels.astype(np.float64)) < 2**53)).all()):  # nor NaN
            raise DataError(f"{what} are not whole numbers")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "S":
        labels = labels.astype(str)
    if labels.dtype.kind not in "biuU":
        raise DataError(f"{what} are {labels.dtype}; expected whole numbers or text")
    if labels.dtype == np.uint64 and bool((labels >= 2**63).any()):
        raise DataError(f"{what} are as large as {labels.max()}; expected class numbers")
    return labels.astype(np.int64) if labels.dtype.kind in "biu" else labels


def numbered(
    labels: Mapping[str, np.ndarray], names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Class numbers from 0 without gaps, and the class names: those given, or the labels as they were."""
    present = {str(label) for own in labels.values() for label in np.unique(own)}
    as_numbers = all(own.dtype.kind == "i" for own in labels.values())
    if names is not None and as_numbers:
        top = max((int(own.max()) for own in labels.values() if len(own)), default=-1)
        low = min((int(own.min()) for own in labels.values() if len(own)), default=0)
        if low == 1 and top == len(names):  # counted from 1
            return {part: own - 1 for part, own in labels.items()}, names
        if low < 0 or top >= len(names):
            raise DataError(f"labels are from {low} to {top}, and there are {len(names)} class names")
        return dict(labels), names
    order = list(names) if names is not None else ordered(present)
    unknown = sorted(present - set(order))
    if unknown:
        raise DataError(f"label {unknown[0]!r} is not among the class names: {', '.join(order)}")
    number = {name: k for k, name in enumerate(order)}
    return {part: np.array([number[str(v)] for v in own], np.int64) for part, own in labels.items()}, tuple(order)


def from_zero(labels: Mapping[str, np.ndarray], names: int | None) -> tuple[dict[str, np.ndarray], int]:
    """Numbers that count the classes from 1 (up to the number of names, if there are names) less 1; and the first one.

    Other numbers, and what is none, are returned as they are.
    """
    arrays = [own for own in labels.values() if own.size]
    if not arrays or any(own.dtype.kind not in "iuf" for own in arrays):
        return dict(labels), 0
    low, high = min(own.min() for own in arrays), max(own.max() for own in arrays)
    if low == 1 and high == (names or high):
        return {part: own - 1 for part, own in labels.items()}, 1
    return dict(labels), 0
