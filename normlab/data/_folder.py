"""An image folder, `class/image` with `train/`, `val/`, `test/` above it or not; in a folder, a zip or a tar."""

from __future__ import annotations

from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from normlab.data._files import Tree
from normlab.data._pixels import SUFFIXES
from normlab.data._source import WHOLE, Part, Source, in_blocks, listing, printable
from normlab.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def open_folder(tree: Tree) -> Source:
    """The source of a tree of images; labels are the class folders in the order of their names."""
    names = [name for name in tree.names if name.lower().endswith(SUFFIXES)]
    if not names:
        raise DataError(
            "no image found; expected one folder of images per class, such as cat/1.jpg and dog/2.png, "
            f"with {', '.join(SUFFIXES)}"
        )
    depth = _wrapping(names)
    paths = {name: PurePosixPath(name).parts[depth:] for name in names}
    folders = [path for name in tree.folders if (path := PurePosixPath(name).parts[depth:])]
    split = _has_splits(list(paths.values()))
    level = 1 if split else 0
    if split:
        _check_splits([*paths.values(), *folders])

    strays = [name for name, path in paths.items() if len(path) < level + 2]
    members: dict[str, list[str]] = {}
    for name, path in paths.items():
        if len(path) >= level + 2:
            members.setdefault(SPLIT_NAMES[path[0].lower()] if split else WHOLE, []).append(name)
    classes = sorted({paths[name][level] for names in members.values() for name in names})
    _check_classes(classes, members, paths, [path for path in folders if len(path) == level + 1], level)

    number = {name: k for k, name in enumerate(classes)}
    parts = {
        part: _part(tree, own, np.array([number[paths[name][level]] for name in own], np.int64))
        for part, own in members.items()
    }
    others = [name for name in tree.names if not name.lower().endswith(SUFFIXES)]
    notes: tuple[str, ...] = ()
    if others:
        some = ", ".join(repr(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
        notes = (f"{len(others)} files are not images by their ending and were ignored: {some}",)
    return Source(
        tuple(map(printable, classes)),
        parts,
        strays=tuple((repr(name), "lies in no class folder") for name in strays),
        notes=notes,
    )


def _part(tree: Tree, names: list[str], labels: np.ndarray) -> Part:
    return Part(labels, lambda: in_blocks(tree.read(names)), lambda row: repr(names[row]))


def _wrapping(names: list[str]) -> int:
    """How many folders wrap all classes: an archive often holds one folder that holds everything."""
    depth = 0
    paths = [PurePosixPath(name).parts for name in names]
    while (
        all(len(parts) >= depth + 3 for parts in paths)
        and len({parts[depth] for parts in paths}) == 1
        and paths[0][depth].lower() not in SPLIT_NAMES
    ):
        depth += 1
    return depth


def _has_splits(paths: list[tuple[str, ...]]) -> bool:
    """Whether there is a train folder above the classes; a class may be called train too, with images in it."""
    train = [parts for parts in paths if SPLIT_NAMES.get(parts[0].lower()) == "train"]
    return bool(train) and any(len(parts) >= 3 for parts in train)


def _check_splits(paths: list[tuple[str, ...]]) -> None:
    tops = sorted({parts[0] for parts in paths if len(parts) > 1})
    unknown = [top for top in tops if top.lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(
            f"there is a train folder, so every folder beside it must be a split ({', '.join(SPLIT_NAMES)}); "
            "move or rename" + listing(map(repr, unknown), len(unknown))
        )
    for split in ("train", "val", "test"):
        twice = [top for top in tops if SPLIT_NAMES[top.lower()] == split]
        if len(twice) > 1:
            raise DataError(f"several folders stand for the {split} split: {', '.join(map(repr, twice))}")


def _check_classes(
    classes: list[str],
    members: dict[str, list[str]],
    paths: dict[str, tuple[str, ...]],
    class_folders: list[tuple[str, ...]],
    level: int,
) -> None:
    filled = {parts[: level + 1] for parts in paths.values() if len(parts) >= level + 2}
    empty = ["/".join(parts) for parts in class_folders if parts not in filled]
    if empty:
        raise DataError("no image in these class folders" + listing(map(repr, empty), len(empty)))
    if len(classes) < 2:
        found = repr(classes[0]) if classes else "none"
        raise DataError(
            f"a comparison needs at least two class folders; found {found} "
            f"(images such as {', '.join(map(repr, islice(paths, 2)))})"
        )
    trained = {paths[name][level] for name in members.get("train", members.get(WHOLE, []))}
    untrained = [name for name in classes if name not in trained]
    if untrained:
        raise DataError("these classes have no training images" + listing(map(repr, untrained), len(untrained)))
