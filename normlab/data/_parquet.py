"""Parquet in the Hugging Face image layout: a column of encoded images and a column of class numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.data._folder import SPLIT_NAMES
from normlab.data._source import (
    BLOCK_ROWS,
    WHOLE,
    Encoded,
    Part,
    Source,
    checked_labels,
    in_blocks,
    listing,
    numbered_classes,
    printable,
)
from normlab.errors import DataError, require

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_JPEG = b"\xff\xd8"  # how such a file begins


def open_parquet(root: Path, names: tuple[str, ...]) -> Source:
    """The source of Parquet files; `train-*.parquet`, `test-*.parquet` ... name their split."""
    by_part: dict[str, list[_File]] = {}
    unnamed = []
    for name in sorted(names):
        stem = Path(name).name.lower().removesuffix(".parquet")
        part = next(
            (SPLIT_NAMES[word] for word in (stem, stem.split("-")[0], stem.split("_")[0]) if word in SPLIT_NAMES), WHOLE
        )
        if part == WHOLE:
            unnamed.append(name)
        by_part.setdefault(part, []).append(_opened(root / name if name else root, name or root.name))
    if unnamed and len(by_part) > 1:
        raise DataError(
            "some Parquet files name their split (train, val, test) and these do not; rename or remove them"
            + listing(map(repr, unnamed), len(unnamed))
        )
    if set(by_part) == {"test"} or set(by_part) == {"val"} or len(names) == 1:  # one lone file is the whole
        by_part = {WHOLE: [file for files in by_part.values() for file in files]}
    class_names = next((file.class_names for files in by_part.values() for file in files if file.class_names), None)
    parts = {part: _part(files, class_names) for part, files in by_part.items()}
    label_column = next(iter(by_part.values()))[0].label
    numbered = class_names or numbered_classes(
        {part: own.labels for part, own in parts.items()}, f"column {label_column!r}"
    )
    return Source(numbered, parts, notes=_notes(parts))


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    rows: int
    image: str  # the column of encoded bytes, "img.bytes" if it lies in a struct
    label: str
    class_names: tuple[str, ...] | None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {name!r} as Parquet: {error}") from error


def _opened(path: Path, name: str) -> _File:
    require(f"{name} is Parquet, which", "parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(name), pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    columns = {field.name: field.type for field in schema}
    image = next((column for column in _IMAGE_COLUMNS if column in columns), None)
    label = next((column for column in _LABEL_COLUMNS if column in columns), None)
    found = ", ".join(f"{column} ({kind})" for column, kind in columns.items())
    if image is None or label is None:
        wanted = " and ".join(
            f"one of {', '.join(choice)}"
            for choice, own in ((_IMAGE_COLUMNS, image), (_LABEL_COLUMNS, label))
            if own is None
        )
        raise DataError(f"{name!r} has no column {wanted}; found {found}")
    kind = columns[image]
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if nested else kind
    if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise DataError(f"{name!r} column {image!r} is {kind}; expected binary, or a struct with binary 'bytes'")
    if not pa.types.is_integer(columns[label]):
        raise DataError(f"{name!r} column {label!r} is {columns[label]}; expected integer class numbers")
    return _File(path, name, rows, f"{image}.bytes" if nested else image, label, _names(schema, label))


def _names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names in the Hugging Face metadata of the schema, if there are any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))


def _part(files: list[_File], class_names: tuple[str, ...] | None) -> Part:
    labels = np.concatenate([_labels(file, class_names) for file in files])
    ends = np.cumsum([file.rows for file in files])

    def where(row: int) -> str:
        at = int(np.searchsorted(ends, row, side="right"))
        return f"{files[at].name!r} row {row - int(ends[at]) + files[at].rows}"

    return Part(labels, lambda: in_blocks(image for file in files for image in _images(file)), where)


def _notes(parts: dict[str, Part]) -> tuple[str, ...]:
    """What users of a well-known set should hear: after JPEG it is not pixel for pixel what was published."""
    block: Any = next(next(iter(parts.values())).blocks(), ())
    first = next((data for data in block if isinstance(data, bytes)), b"")
    return ("its images are stored as JPEG, so pixels may differ from the original ones",) if first[:2] == _JPEG else ()


def _labels(file: _File, class_names: tuple[str, ...] | None) -> np.ndarray:
    import pyarrow.parquet as pq

    with _reading(file.name), pq.ParquetFile(file.path) as opened:
        column = opened.read(columns=[file.label]).column(0)
    if column.null_count:
        rows = np.flatnonzero(column.is_null().to_numpy())
        raise DataError(
            f"{file.name!r} column {file.label!r}: {len(rows)} labels are missing"
            + listing((f"row {row}" for row in rows), len(rows))
        )
    where = f"{file.name!r} column {file.label!r}"
    return checked_labels(column.to_numpy(), where, file.rows, len(class_names) if class_names else None)


def _images(file: _File) -> Iterator[Encoded]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _reading(file.name), pq.ParquetFile(file.path) as opened:
        for batch in opened.iter_batches(BLOCK_ROWS, columns=[file.image], use_threads=False):
            column: Any = batch.column(0)
            if "." in file.image:
                column = pc.struct_field(column, "bytes")
            for data in column:
                yield data.as_py() if data.is_valid else DataError("no image bytes in this row")
