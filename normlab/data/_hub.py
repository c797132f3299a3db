"""A data set of the Hugging Face hub, `hf:owner/name`, as a folder of Parquet files that the other readers take.

It is written once into the cache, images encoded as they came; later loads read the folder and ask the hub nothing. A
folder that `datasets` saved, `hf:./folder`, is read where it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normlab.data._files import fingerprint
from normlab.data._folder import SPLIT_NAMES
from normlab.errors import DataError, UsageError, require

PREFIX = "hf:"
_FORM = "expected hf:owner/name, perhaps with @revision and :configuration, or hf:folder"
_NAME = re.compile(r"(?P<path>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<configuration>.+))?")
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in its folder


def is_of_hub(source: object) -> bool:
    """Whether a source names a data set of the hub."""
    return isinstance(source, str) and source.startswith(PREFIX)


def fetched(source: str, root: Path) -> Path:
    """The folder of Parquet files of a data set, one for each split, made below `root` unless it is there.

    Raises UsageError for a name of another form and where `datasets` is missing, DataError for a data set that cannot
    be had or has no images with class labels.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None:
        raise UsageError(f"data source {source!r}: {_FORM}")
    local = Path(match["path"]).expanduser()
    if local.is_dir() and (match["revision"] or (match["configuration"] and is_saved(local))):
        what = "revision" if match["revision"] else "configuration"
        raise UsageError(f"data source {source!r}: a folder has no {what}; expected hf:{match['path']}")
    what = fingerprint(local) + (match["configuration"] or "") if local.is_dir() else match[0]
    title = re.sub("[^A-Za-z0-9_.-]+", "-", match["path"].rstrip("/").rpartition("/")[2]).strip("-.") or "data"
    folder = root / "hub" / hashlib.sha256(what.encode()).hexdigest()[:12] / title
    if not folder.is_dir():
        require(f"data source {source!r}", "hf")
        with _name_in_errors(source):
            _write(_load_splits(local, match), folder)
    return folder


def image_and_label(dataset: Any) -> tuple[str, str]:
    """The columns of a data set of `datasets` that hold images and class labels. Raises DataError if one is missing."""
    kinds = {column: type(kind).__name__ for column, kind in dataset.features.items()}
    image = next((column for column, kind in kinds.items() if kind == "Image"), None)
    label = next((column for column, kind in kinds.items() if kind == "ClassLabel"), None)
    label = label or next((column for column in ("label", "labels") if column in kinds), None)
    if image is None or label is None:
        told = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(f"its columns are {told}; expected one of images and one of class labels")
    return image, label


def _load_splits(local: Path, match: re.Match[str]) -> Mapping[str, Any]:
    """The splits by name, as `datasets` has them."""
    import datasets

    if is_saved(local):
        found = datasets.load_from_disk(str(local))
    else:
        found = datasets.load_dataset(match["path"], match["configuration"], revision=match["revision"])
    return found if isinstance(found, Mapping) else {"train": found}


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `datasets` leaves of a data set."""
    return any((folder / name).is_file() for name in _SAVED)


def _write(splits: Mapping[str, Any], folder: Path) -> None:
    """One Parquet file for each split that can be used; the folder appears whole or not at all."""
    used: dict[str, Any] = {}
    for written, own in splits.items():
        split = SPLIT_NAMES.get(str(written).lower())
        if split in used:
            same = [str(name) for name in splits if SPLIT_NAMES.get(str(name).lower()) == split]
            raise DataError(f"its splits {' and '.join(same)} are both the {split} split; keep one of them")
        if split:
            used[split] = own
    if not used:
        raise DataError(f"its splits are {', '.join(map(str, splits))}; expected one of {', '.join(SPLIT_NAMES)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder.parent))
    try:
        for name, own in used.items():
            image, label = image_and_label(own)
            own = own.select_columns([image, label]).rename_columns({image: "image", label: "label"})
            own.to_parquet(str(scratch / f"{name}.parquet"))
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _name_in_errors(source: str) -> Iterator[None]:
    """Turns whatever `datasets` raises, and whatever network it lacks, into one line with the source in front."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except DataError as error:
        raise DataError(f"{source!r}: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source!r} cannot be had: {type(error).__name__}: {text[:300]}; {_FORM}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
