"""CIFAR-10 and CIFAR-100 in the official python and binary layouts (Krizhevsky, 2009), unpacked or in their tar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normlab.data._dataset import Labels, Pixels
from normlab.data._files import Tree
from normlab.data._pickles import load_plain
from normlab.data._source import Block, Part, Source, checked_labels, listing, printable
from normlab.errors import DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Layout:
    """The files of one official layout. A binary record is `label_bytes` labels, the last of which counts."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names_field: str
    labels_field: str = "labels"
    label_bytes: int = 0  # 0: pickles


_LAYOUTS = (
    Layout(_TEN, ("test_batch",), "batches.meta", "label_names"),
    Layout(tuple(f"{name}.bin" for name in _TEN), ("test_batch.bin",), "batches.meta.txt", "", label_bytes=1),
    Layout(("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
    Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", "", label_bytes=2),
)


def find_cifar(tree: Tree) -> tuple[str, Layout] | None:
    """The folder inside the tree ("" or ending in "/") and the layout found there, if its name files are."""
    present = set(tree.names)
    for base in sorted({name[: name.rfind("/") + 1] for name in tree.names}):
        for layout in _LAYOUTS:
            batches = [base + batch in present for batch in layout.train + layout.test]
            # "train" and "test" alone could be anything; batch files could not
            if (base + layout.meta in present and any(batches)) or all(batches):
                return base, layout
    return None


def open_cifar(tree: Tree, base: str, layout: Layout) -> Source:
    """The source of an official layout; every missing batch file is named."""
    wanted = [*layout.train, *layout.test, layout.meta]
    missing = [name for name in wanted if base + name not in tree.names]
    if missing:
        raise DataError("the CIFAR files are not complete; missing" + listing(map(repr, missing), len(missing)))
    class_names = _class_names(tree, base, layout)

    parts = {}
    for part, batches in (("train", layout.train), ("test", layout.test)):
        labels, ends = [], []
        for batch in batches:
            own, _ = _batch(tree, base + batch, layout, class_names)
            labels.append(own)
            ends.append(len(own))
        parts[part] = Part(
            np.concatenate(labels), _Blocks(tree, base, batches, layout, class_names), _Place(batches, ends)
        )
    return Source(class_names, parts, _SHAPE)


@dataclass(frozen=True)
class _Blocks:
    tree: Tree
    base: str
    batches: tuple[str, ...]
    layout: Layout
    class_names: tuple[str, ...]

    def __call__(self) -> Iterator[Block]:
        for batch in self.batches:
            yield _batch(self.tree, self.base + batch, self.layout, self.class_names)[1]


@dataclass(frozen=True)
class _Place:
    batches: tuple[str, ...]
    counts: list[int]

    def __call__(self, row: int) -> str:
        batch = int(np.searchsorted(np.cumsum(self.counts), row, side="right"))
        return f"{self.batches[batch]!r} row {row - sum(self.counts[:batch])}"


def _contents(tree: Tree, name: str) -> bytes:
    (data,) = tree.read([name])
    if isinstance(data, Exception):
        raise DataError(f"cannot read {name!r}: {data}") from data
    return data


def _class_names(tree: Tree, base: str, layout: Layout) -> tuple[str, ...]:
    data = _contents(tree, base + layout.meta)
    if layout.label_bytes:
        names: Any = data.decode("utf-8", "backslashreplace").split("\n")
        names = [name.strip("\r") for name in names if name.strip()]
    else:
        names = load_plain(data, repr(layout.meta)).get(layout.names_field)
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, bytes)) for name in names):
        raise DataError(f"{layout.meta!r} holds no list of class names" + f" {layout.names_field!r}".rstrip(" '"))
    return tuple(
        printable(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name) for name in names
    )


def _batch(tree: Tree, name: str, layout: Layout, class_names: tuple[str, ...]) -> tuple[Labels, Pixels]:
    data = _contents(tree, name)
    where = repr(name.rpartition("/")[2])
    if layout.label_bytes:
        record = layout.label_bytes + _PIXELS
        if not data or len(data) % record:
            raise DataError(f"{where} has {len(data)} bytes; expected a multiple of {record} (labels and 3x32x32)")
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        labels: Any = rows[:, layout.label_bytes - 1]
        pixels: Any = rows[:, layout.label_bytes :]
    else:
        fields = load_plain(data, where)
        missing = [field for field in ("data", layout.labels_field) if field not in fields]
        if missing:
            raise DataError(f"{where} has no field {' and '.join(map(repr, missing))}; found {sorted(fields)}")
        labels, pixels = fields[layout.labels_field], fields["data"]
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (_PIXELS,)):
            found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise DataError(f"{where} field 'data' is {found}; expected uint8 (N, {_PIXELS})")
        if isinstance(labels, list) and not all(isinstance(label, int) for label in labels):
            raise DataError(f"{where} field {layout.labels_field!r} holds something else than integers")
    field_name = where if layout.label_bytes else f"{where} field {layout.labels_field!r}"
    return checked_labels(labels, field_name, len(pixels), len(class_names)), pixels.reshape(-1, *_SHAPE)


def known_names(path: Path, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The official names for ten numbered classes in a file or folder that is called CIFAR-10."""
    called = re.search(r"cifar[-_ ]?10(?!\d)", "/".join(path.resolve().parts[-2:]).lower())
    return CIFAR10 if called and class_names == tuple(map(str, range(10))) else class_names
