"""The contract between readers and the rest: a source is named parts, each with labels and a stream of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from normlab.data._dataset import Labels, Pixels
from normlab.errors import DataError

# A block is decoded already, uint8 (n, C, H, W), or a list of encoded images; an image that could not even
# be read is the exception, so that one pass can name every offending file.
Encoded: TypeAlias = bytes | Exception
Block: TypeAlias = "Pixels | list[Encoded]"
Progress: TypeAlias = Callable[[int, int, str], None]

WHOLE = "whole"  # the one part of a source that comes without a split
LISTED = 20  # offending files or fields named in one message

BLOCK_ROWS = 256
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Part:
    """One part of a source. `where(row)` names a row in messages; `blocks()` streams the images in row order."""

    labels: Labels
    blocks: Callable[[], Iterator[Block]]
    where: Callable[[int], str]


@dataclass(frozen=True)
class Source:
    """What a reader found: `parts` is {WHOLE: ...} or train with, perhaps, val and test.

    `shape` is (C, H, W), or None where it must be read from the images' headers.
    `strays` are files that belong to no part, with the reason.
    """

    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    shape: tuple[int, int, int] | None = None
    strays: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())


def in_blocks(images: Iterator[Encoded]) -> Iterator[Block]:
    """The images in lists that are bounded in number and in bytes."""
    block: list[Encoded] = []
    held = 0
    for image in images:
        block.append(image)
        held += len(image) if isinstance(image, bytes) else 0
        if len(block) == BLOCK_ROWS or held >= _BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


def listing(lines: Iterable[str], count: int) -> str:
    """Up to `LISTED` indented lines, and how many more there are."""
    shown = [f"\n  {line}" for line in islice(lines, LISTED)]
    if count > len(shown):
        shown.append(f"\n  ... and {count - len(shown)} more")
    return "".join(shown)


def printable(name: str) -> str:
    """A name that encodes to UTF-8 whatever bytes a file system or a file put into it; otherwise unchanged."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def checked_labels(values: Any, field_name: str, rows: int, num_classes: int | None) -> Labels:
    """`values` as int64 (rows,), or a DataError naming the field and the first offending rows."""
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (rows,):
        raise DataError(f"{field_name} has shape {labels.shape}; expected one label per image: ({rows},)")
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{field_name} has dtype {labels.dtype}; expected integer class numbers")
    top = np.inf if num_classes is None else num_classes
    with np.errstate(invalid="ignore"):
        bad = ~((labels >= 0) & (labels < top) & (labels < 2**31) & (labels == np.floor(labels)))
    if bad.any():
        expected = "0 and above" if num_classes is None else f"0 to {num_classes - 1}"
        found = (f"row {row}: {labels[row]}" for row in np.flatnonzero(bad))
        raise DataError(
            f"{field_name}: {bad.sum()} of {rows} labels are not class numbers ({expected})"
            + listing(found, int(bad.sum()))
        )
    return labels.astype(np.int64)


def numbered_classes(labels: Mapping[str, Labels], field_name: str, first: int = 0) -> tuple[str, ...]:
    """Class names "0", "1", ... for labels that come without names; every number up to the largest must occur.

    Where the labels were counted from 1 the names begin with `first`.
    """
    present = set(np.unique(np.concatenate(list(labels.values()))).tolist())
    count = max(present, default=-1) + 1
    missing = count - len(present)
    if missing:
        gaps = (f"no image has label {k}" for k in range(count) if k not in present)
        raise DataError(
            f"{field_name}: labels must number the classes 0 to {count - 1} without gaps" + listing(gaps, missing)
        )
    return tuple(map(str, range(first, first + count)))
