"""Images that a Python program holds, as a file that `load` reads: a study that is opened later finds them there.

Understood are (x, y); a dict of x_train, y_train and, perhaps, x_val, y_val, x_test, y_test, or of a split's name and
its (x, y) or its dataset; a torch `Dataset` of images and labels, or one of
`datasets`; and a table (a DataFrame) of paths and labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normlab.data._decode import DEFAULT_SIZE
from normlab.data._folder import SPLIT_NAMES
from normlab.data._hub import image_and_label
from normlab.data._labels import numbered, one_each, refuse_missing
from normlab.data._pictures import as_planes, fitted
from normlab.data._split import SPLITS
from normlab.data._table import LABELS, PATHS
from normlab.data._table import SPLITS as SPLIT_COLUMNS
from normlab.errors import DataError, UsageError, files

EXPECTED = (
    "a path or name, (x, y), {'x_train': ..., 'y_train': ...}, {'train': (x, y), 'test': (x, y)}, a torch Dataset "
    "of images and labels, or a DataFrame with the columns path and label"
)


@dataclass(frozen=True)
class Held:
    """Images from memory as the content of a file: its name, ending included, and its bytes."""

    name: str
    content: bytes

    def write(self, folder: Path) -> Path:
        """Write the file into a folder, unless it is there; returns its path."""
        path = folder / self.name
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, self.content)
        return path


def held(data: Any, class_names: Sequence[str] | None = None, image_size: int | None = None) -> Held:
    """The file that holds these images. Raises UsageError for what is none of the kinds that are understood."""
    if hasattr(data, "columns") and hasattr(data, "itertuples"):
        _no_names(data, class_names)
        return _write_table(data)
    splits, names = _splits(data)
    if all(_are_paths(x) for x, _ in splits.values()):
        _no_names(data, class_names)
        return _paths(splits)
    names = tuple(class_names) if class_names is not None else names
    arrays: dict[str, np.ndarray] = {}
    labels = {part: one_each(y, f"the labels of {part}") for part, (_, y) in splits.items()}
    numbers, found = numbered(labels, names)
    for part, (x, _) in splits.items():
        arrays[f"x_{part}"] = _images(x, f"the images of {part}", image_size)
        arrays[f"y_{part}"] = numbers[part]
        _check_lengths(part, arrays[f"x_{part}"], numbers[part])
    arrays["class_names"] = np.array(found)
    sha = hashlib.sha256()
    for key in sorted(arrays):
        sha.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        sha.update(np.ascontiguousarray(arrays[key]).data if arrays[key].dtype.kind != "U" else repr(found).encode())
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return Held(f"arrays-{sha.hexdigest()[:8]}.npz", buffer.getvalue())


def _no_names(data: Any, class_names: Sequence[str] | None) -> None:
    if class_names is not None or (isinstance(data, Mapping) and data.get("class_names") is not None):
        raise UsageError("class_names is for arrays; the classes of files are called as their folders or labels")


def _check_lengths(part: str, images: Sized, labels: Sized) -> None:
    if len(images) != len(labels):
        raise DataError(f"{part} has {len(images)} images and {len(labels)} labels; expected one label per image")


def _paths(splits: Mapping[str, tuple[Any, Any]]) -> Held:
    """Lists of paths and their labels as a CSV of absolute paths."""
    rows = []
    for part, (paths, y) in splits.items():
        labels = one_each(y, f"the labels of {part}")
        _check_lengths(part, paths, labels)
        rows += [(path, label, part) for path, label in zip(paths, labels, strict=True)]
    one = len(splits) == 1
    return _table(["path", "label"] if one else ["path", "label", "split"], [row[: 2 + (not one)] for row in rows])


def _write_table(table: Any) -> Held:
    """A DataFrame of paths and labels as a CSV of absolute paths."""
    names = {str(column).lower(): column for column in table.columns}
    wanted = {
        "path": next((names[c] for c in PATHS if c in names), None),
        "label": next((names[c] for c in LABELS if c in names), None),
        "split": next((names[c] for c in SPLIT_COLUMNS if c in names), None),
    }
    missing = [name for name in ("path", "label") if wanted[name] is None]
    if missing:
        raise UsageError(
            f"the table has no column {' and '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    kept = [name for name, column in wanted.items() if column is not None]
    for name in kept:
        refuse_missing(table[wanted[name]], f"the table's column {str(wanted[name])!r}")
    return _table(kept, list(zip(*(table[wanted[name]] for name in kept), strict=True)))


def _table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Held:
    """A CSV of these rows, their paths, the first cells, made absolute."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows((Path(path).expanduser().resolve(), *rest) for path, *rest in rows)
    content = text.getvalue().encode()
    return Held(f"table-{hashlib.sha256(content).hexdigest()[:8]}.csv", content)


def _are_paths(x: Any) -> bool:
    return isinstance(x, Sequence) and len(x) > 0 and all(isinstance(item, str | os.PathLike) for item in x)


def _splits(data: Any) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...] | None]:
    """{split: (images, labels)}, and the class names if the data has some."""
    if isinstance(data, Mapping):
        fields = {str(name): value for name, value in data.items()}
        names = fields.pop("class_names", None)
        names = None if names is None else tuple(map(str, names))
        if {"x", "y"} <= fields.keys():
            return {"train": (fields["x"], fields["y"])}, names
        parts = [part for part in SPLITS if f"x_{part}" in fields or f"y_{part}" in fields]
        if parts:
            lacking = [f"{c}_{part}" for part in parts for c in "xy" if f"{c}_{part}" not in fields]
            if lacking or "train" not in parts:
                raise UsageError(f"data has no {', '.join(lacking) or 'x_train'}; it has {', '.join(fields)}")
            return {part: (fields[f"x_{part}"], fields[f"y_{part}"]) for part in parts}, names
        unknown = [name for name in fields if name.lower() not in SPLIT_NAMES]
        if unknown or not fields:
            raise UsageError(f"data is a dict of {', '.join(fields) or 'nothing'}; expected {EXPECTED}")
        found = {}
        for name, value in fields.items():
            split = SPLIT_NAMES[name.lower()]
            if split in found:
                raise UsageError(f"data has the {split} split twice, the second time as {name!r}; leave one out")
            found[split], own = _pair(value)
            names = names or own
        if "train" not in found:
            raise UsageError(f"data has no training images, only {', '.join(fields)}; expected {EXPECTED}")
        return found, names
    pair, names = _pair(data)
    return {"train": pair}, names


def _pair(data: Any) -> tuple[tuple[Any, Any], tuple[str, ...] | None]:
    """(images, labels) of one split, and its class names if it has some."""
    if isinstance(data, tuple | list) and len(data) == 2 and not _is_item(data):
        return (data[0], data[1]), None
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return _of_columns(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "shape"):
        return _read_all(data)
    fix = "; give its .dataset" if hasattr(data, "dataset") and hasattr(data, "batch_size") else ""
    raise UsageError(f"data is {type(data).__name__}; expected {EXPECTED}{fix}")


def _is_item(data: Sequence[Any]) -> bool:
    """Whether a list of two is two items of a dataset, and not images and labels."""
    return all(isinstance(item, tuple) and len(item) == 2 for item in data)


def _of_columns(dataset: Any) -> tuple[tuple[Any, Any], tuple[str, ...] | None]:
    """The images and labels of a data set of `datasets`."""
    image, label = image_and_label(dataset)
    names = getattr(dataset.features[label], "names", None)
    return (list(dataset[image]), list(dataset[label])), None if names is None else tuple(map(str, names))


def _read_all(dataset: Any) -> tuple[tuple[Any, Any], tuple[str, ...] | None]:
    """Every image and label of a dataset, read by index."""
    images, labels = [], []
    for at in range(len(dataset)):
        item = dataset[at]
        if isinstance(item, Mapping):
            image = next((item[k] for k in ("image", "img", "x", "pixel_values") if k in item), None)
            label = next((item[k] for k in ("label", "labels", "fine_label", "y") if k in item), None)
            if image is None or label is None:
                raise UsageError(f"item {at} of the dataset has {', '.join(map(str, item))}; expected image and label")
        elif isinstance(item, tuple | list) and len(item) >= 2:
            image, label = item[0], item[1]
        else:
            raise UsageError(f"item {at} of the dataset is {type(item).__name__}; expected (image, label)")
        images.append(image)
        labels.append(label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label)
    names = _class_names(dataset)
    return (images, labels), None if names is None else tuple(map(str, names))


def _class_names(dataset: Any) -> Any:
    """The `classes` of a dataset, or of the one that it is a part of or begins with; None if there are none."""
    for inner in (dataset, getattr(dataset, "dataset", None), *(getattr(dataset, "datasets", None) or ())[:1]):
        if getattr(inner, "classes", None) is not None:
            return inner.classes
    return None


def _images(x: Any, what: str, image_size: int | None) -> np.ndarray:
    """uint8 (N, C, H, W) of an array of images, or of a list of them, which may differ in size."""
    if hasattr(x, "shape") or not isinstance(x, Sequence):
        array = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
        if array.ndim not in (3, 4):
            raise DataError(f"{what} have shape {array.shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W)")
        x = array if array.ndim == 4 else array[:, None]
        return _fine(x, what)
    pictures = [_fine(image, f"{what}, number {at}") for at, image in enumerate(x)]
    if any(len(picture) != 1 for picture in pictures):
        raise DataError(f"{what}: an item of the list has several images; expected one each")
    if not pictures:
        raise DataError(f"{what}: there are none")
    channels = max(picture.shape[1] for picture in pictures)
    sizes = {picture.shape[2:] for picture in pictures}
    height, width = sizes.pop() if len(sizes) == 1 else (image_size or DEFAULT_SIZE,) * 2
    return np.stack([fitted(picture[0], (channels, height, width)) for picture in pictures])


def _fine(image: Any, what: str) -> np.ndarray:
    try:
        return as_planes(image)
    except UsageError as error:
        raise DataError(f"{what}: {error}; a dataset's Normalize comes after, leave it out") from None
