"""Parquet in the Hugging Face image layout: a column of encoded images and a column of class numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.data._files import read_files
from normlab.data._folder import SPLIT_NAMES
from normlab.data._labels import from_zero, numbered
from normlab.data._limits import check_rows
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
from normlab.data._table import LABELS, PATHS
from normlab.errors import DataError, require

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_PATH_COLUMNS = tuple(name for name in PATHS if name not in _IMAGE_COLUMNS)
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
        by_part.setdefault(part, []).append(_open(root / name if name else root, name or root.name))
    if unnamed and len(by_part) > 1:
        raise DataError(
            "some Parquet files name their split (train, val, test) and these do not; rename or remove them"
            + listing(map(repr, unnamed), len(unnamed))
        )
    if set(by_part) == {"test"} or set(by_part) == {"val"} or len(names) == 1:  # one lone file is the whole
        by_part = {WHOLE: [file for files in by_part.values() for file in files]}
    class_names = next((file.class_names for files in by_part.values() for file in files if file.class_names), None)
    labels = {part: [_labels(file) for file in files] for part, files in by_part.items()}
    first = 0
    texts = [own for several in labels.values() for own in several if own.dtype.kind == "U"]
    if texts:
        flat = {f"{part} {i}": own.astype(str) for part, several in labels.items() for i, own in enumerate(several)}
        numbers, class_names = numbered(flat, class_names)
        labels = {part: [numbers[f"{part} {i}"] for i in range(len(several))] for part, several in labels.items()}
    else:
        _, first = from_zero(
            {part: np.concatenate(several) for part, several in labels.items()},
            len(class_names) if class_names else None,
        )  # fmt: skip
        if first:
            labels = {part: [own - 1 for own in several] for part, several in labels.items()}
    count = len(class_names) if class_names else None
    parts = {part: _part(files, labels[part], count) for part, files in by_part.items()}
    label_column = next(iter(by_part.values()))[0].label
    names = class_names or numbered_classes(
        {part: own.labels for part, own in parts.items()}, f"column {label_column!r}", first
    )
    return Source(tuple(map(printable, names)), parts, notes=_notes(parts))


def named_files(root: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The image files that Parquet files name, where they hold paths and no images."""
    for name in sorted(names):
        file = _open(root / name if name else root, name or root.name)
        if file.paths:
            yield from (file.path.parent / path for path in _column(file, file.image) if path)


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    rows: int
    image: str  # the column of encoded bytes, "img.bytes" if it lies in a struct
    label: str
    class_names: tuple[str, ...] | None
    paths: bool  # whether the column has the paths of files, and not their bytes


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {name!r} as Parquet: {error}") from error


def _open(path: Path, name: str) -> _File:
    require(f"{name} is Parquet, which", "parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _parquet_errors(name), pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    check_rows(rows, repr(name))
    columns = {field.name: field.type for field in schema}
    image = next((column for column in (*_IMAGE_COLUMNS, *_PATH_COLUMNS) if column in columns), None)
    paths = image is not None and _is_text(columns[image])
    label_columns = LABELS if image in _PATH_COLUMNS else _LABEL_COLUMNS
    label = next((column for column in label_columns if column in columns), None)
    found = ", ".join(f"{column} ({kind})" for column, kind in columns.items())
    if image is None or label is None:
        wanted = " and ".join(
            f"one of {', '.join(choice)}"
            for choice, own in ((_IMAGE_COLUMNS, image), (label_columns, label))
            if own is None
        )
        raise DataError(f"{name!r} has no column {wanted}; found {found}")
    kind = columns[image]
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if nested else kind
    if not (paths or pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise DataError(f"{name!r} column {image!r} is {kind}; expected binary, or a struct with binary 'bytes'")
    if not (pa.types.is_integer(columns[label]) or _is_text(columns[label])):
        raise DataError(f"{name!r} column {label!r} is {columns[label]}; expected integer class numbers, or text")
    file = _File(path, name, rows, f"{image}.bytes" if nested else image, label, _names(schema, label), paths)
    if paths and not any((path.parent / text).is_file() for text in _column(file, image) if text):
        raise DataError(
            f"{name!r} column {image!r} is {columns[image]}; expected binary, a struct with binary 'bytes', or paths "
            f"of files, which start at {str(path.parent)!r}: there is none of them"
        )
    return file


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column(file: _File, name: str) -> list[Any]:
    import pyarrow.parquet as pq

    with _parquet_errors(file.name), pq.ParquetFile(file.path) as opened:
        found: list[Any] = opened.read(columns=[name]).column(0).to_pylist()
    return found


def _names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names in the Hugging Face metadata of the schema, if there are any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))


def _part(files: list[_File], given: list[np.ndarray], num_classes: int | None) -> Part:
    labels = np.concatenate(
        [
            checked_labels(own, f"{file.name!r} column {file.label!r}", file.rows, num_classes)
            for file, own in zip(files, given, strict=True)
        ]
    )
    ends = np.cumsum([file.rows for file in files])

    def where(row: int) -> str:
        at = int(np.searchsorted(ends, row, side="right"))
        return f"{files[at].name!r} row {row - int(ends[at]) + files[at].rows}"

    return Part(labels, lambda: in_blocks(image for file in files for image in _images(file)), where)


def _notes(parts: dict[str, Part]) -> tuple[str, ...]:
    """A note on a well-known set: after JPEG its pixels are not those that were published."""
    block: Any = next(next(iter(parts.values())).blocks(), ())
    first = next((data for data in block if isinstance(data, bytes)), b"")
    return ("its images are stored as JPEG, so pixels may differ from the original ones",) if first[:2] == _JPEG else ()


def _labels(file: _File) -> np.ndarray:
    """The labels as they stand in the file, whole numbers or texts."""
    import pyarrow.parquet as pq

    with _parquet_errors(file.name), pq.ParquetFile(file.path) as opened:
        column = opened.read(columns=[file.label]).column(0)
    if column.null_count:
        rows = np.flatnonzero(column.is_null().to_numpy())
        raise DataError(
            f"{file.name!r} column {file.label!r}: {len(rows)} labels are missing"
            + listing((f"row {row}" for row in rows), len(rows))
        )
    return column.to_numpy() if not _is_text(column.type) else np.array(column.to_pylist(), str)


def _images(file: _File) -> Iterator[Encoded]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if file.paths:
        yield from read_files(file.path.parent, [text or "" for text in _column(file, file.image)])
        return
    with _parquet_errors(file.name), pq.ParquetFile(file.path) as opened:
        for batch in opened.iter_batches(BLOCK_ROWS, columns=[file.image], use_threads=False):
            column: Any = batch.column(0)
            if "." in file.image:
                column = pc.struct_field(column, "bytes")
            for data in column:
                yield data.as_py() if data.is_valid else DataError("no image bytes in this row")
