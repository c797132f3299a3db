"""A NumPy archive of x_train, y_train and, perhaps, x_val, y_val, x_test, y_test; streamed, never unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from normlab.data._dataset import Pixels
from normlab.data._folder import SPLIT_NAMES
from normlab.data._labels import from_zero, numbered, one_each
from normlab.data._limits import check_rows, check_unpacked
from normlab.data._source import BLOCK_ROWS, Block, Part, Source, checked_labels, numbered_classes, printable
from normlab.errors import DataError

_PARTS = ("train", "val", "test")
_SMALL = 64 << 20  # bytes of labels or names that are read at once


def open_npz(path: Path) -> Source:
    """The source of an .npz; images are uint8 or floats in [0, 1], NCHW, NHWC or NHW, with 1 or 3 channels."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _open(path, archive)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read it as an .npz: {error}") from error


def _open(path: Path, archive: zipfile.ZipFile) -> Source:
    check_unpacked(sum(info.file_size for info in archive.infolist()), path.stat().st_size)
    there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    fields = {_canonical_name(name): name for name in there}
    found = [part for part in _PARTS if {f"x_{part}", f"y_{part}"} & fields.keys()]
    wanted = [f"{letter}_{part}" for part in dict.fromkeys(["train", *found]) for letter in "xy"]
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise DataError(f"no field {', '.join(missing)}; found {', '.join(sorted(there)) or 'none'}")
    names: tuple[str, ...] | None = None
    if "class_names" in fields:
        listed = _small(archive, "class_names")
        if listed.ndim != 1 or listed.dtype.kind not in "US":
            raise DataError(f"class_names is {listed.dtype} {listed.shape}; expected a list of texts")
        names = tuple(printable(str(name)) for name in listed.astype(str))

    images = {part: _images(path, archive, fields[f"x_{part}"]) for part in found}
    shapes = {own.name: own.shape for own in images.values()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"the images of the parts differ in (C, H, W): {shapes}")
    labels = {part: _plain_labels(_small(archive, fields[f"y_{part}"]), fields[f"y_{part}"]) for part in found}
    first = 0
    if any(own.dtype.kind == "U" for own in labels.values()):
        labels, names = numbered({part: own.astype(str) for part, own in labels.items()}, names)
    else:
        labels, first = from_zero(labels, len(names) if names else None)
    parts = {}
    for part, own in images.items():
        checked = checked_labels(labels[part], fields[f"y_{part}"], own.rows, len(names) if names else None)
        parts[part] = Part(checked, own, lambda row, name=own.name: f"{name} row {row}")  # type: ignore[misc]
    class_names = names or numbered_classes({part: own.labels for part, own in parts.items()}, "y_train, y_test", first)
    return Source(tuple(map(printable, class_names)), parts, images["train"].shape)


def _canonical_name(field: str) -> str:
    """A field's name as it is known here: X_train, train_x and train_images are x_train, and X alone is too."""
    name = field.lower()
    if name in ("x", "y"):
        return f"{name}_train"
    first, _, second = name.partition("_")
    kind = {"x": "x", "images": "x", "y": "y", "labels": "y"}
    for part, letter in ((second, first if first in ("x", "y") else ""), (first, second)):
        if part in SPLIT_NAMES and letter in kind:
            return f"{kind[letter]}_{SPLIT_NAMES[part]}"
    return field


def _plain_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Texts and one-hot rows as one label for each image; whole numbers, and what is wrong, as they are."""
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf"
    one_hot = one_hot and bool((((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)).all())
    return one_each(labels, name) if labels.dtype.kind in "US" or one_hot else labels


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def _header(file: IO[bytes], name: str) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise DataError(f"{name} holds pickled objects, which are never loaded; save it as a plain numeric array")
    return header


def _small(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A field that fits in memory."""
    with archive.open(f"{name}.npy") as file:
        header = _header(file, name)
        size = math.prod(header.shape) * header.dtype.itemsize
        if size > _SMALL:
            raise DataError(f"{name} is {header.dtype} {header.shape}; expected one label per image")
        flat = np.frombuffer(_exactly(file, size, name), header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _exactly(file: IO[bytes], size: int, name: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"{name} is truncated")
    return data


def _images(path: Path, archive: zipfile.ZipFile, name: str) -> _Images:
    with archive.open(f"{name}.npy") as file:
        header = _header(file, name)
    what = f"{name} is {header.dtype} {header.shape}"
    if header.fortran:
        raise DataError(f"{what} in Fortran order; save numpy.ascontiguousarray({name})")
    if header.dtype != np.uint8 and header.dtype.kind != "f":
        raise DataError(f"{what}; expected uint8, or floats in [0, 1]")
    sizes = header.shape[1:]
    channels_last = len(sizes) == 3 and sizes[0] not in (1, 3) and sizes[2] in (1, 3)
    if not (len(sizes) == 2 or (len(sizes) == 3 and (channels_last or sizes[0] in (1, 3)))) or 0 in sizes:
        raise DataError(f"{what}; expected (N, C, H, W), (N, H, W, C) with 1 or 3 channels, or (N, H, W)")
    check_rows(header.shape[0], name)
    if not header.shape[0]:
        raise DataError(f"{what}: no images")
    return _Images(path, name, header, channels_last)


@dataclass(frozen=True)
class _Images:
    """Streams one field as uint8 (n, C, H, W)."""

    path: Path
    name: str
    header: _Header
    channels_last: bool

    @property
    def rows(self) -> int:
        return self.header.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        sizes = self.header.shape[1:]
        if len(sizes) == 2:
            return (1, sizes[0], sizes[1])
        return (sizes[2], sizes[0], sizes[1]) if self.channels_last else (sizes[0], sizes[1], sizes[2])

    def __call__(self) -> Iterator[Block]:
        row_bytes = math.prod(self.header.shape[1:]) * self.header.dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _header(file, self.name)
            for start in range(0, self.rows, BLOCK_ROWS):
                count = min(BLOCK_ROWS, self.rows - start)
                try:
                    data = _exactly(file, count * row_bytes, self.name)
                except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
                    if isinstance(error, DataError):
                        raise
                    raise DataError(f"cannot read {self.name}: {error}") from error
                flat = np.frombuffer(data, self.header.dtype).reshape(count, *self.header.shape[1:])
                yield self._as_pixels(flat, start)

    def _as_pixels(self, rows: np.ndarray, start: int) -> Pixels:
        if rows.dtype != np.uint8:
            low, high = rows.min(), rows.max()
            if not (low >= 0 and high <= 1):
                raise DataError(
                    f"{self.name} rows {start} to {start + len(rows) - 1} range from {low} to {high}; floats must lie "
                    "in [0, 1]: divide by their largest value, or save uint8"
                )
            rows = np.rint(rows * rows.dtype.type(255)).astype(np.uint8)
        return rows.transpose(0, 3, 1, 2) if self.channels_last else rows.reshape(len(rows), *self.shape)
