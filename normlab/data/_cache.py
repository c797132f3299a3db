"""Decoded images on disk: one folder per source, image size and split, put in place by one atomic rename.

What is read is what was written: an entry's facts carry their digest, its pixels and labels that of the dataset.
Small entries are read whole whenever they are opened; of large ones the files' sizes and times are looked at, and the
content once a day.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from normlab.data._dataset import SIXTEEN_BITS, Copies, Dataset, Labels, Pixels, Split, digest
from normlab.data._split import SPLITS
from normlab.errors import DataError
from normlab.errors.files import write_text

_FORMAT = 3  # part of every key: raise it when readers or files change
_ABANDONED = 24 * 3600  # seconds after which a half-written entry has no writer any more
_SMALL = 64 << 20  # bytes of an entry that is checked whenever it is opened; it takes a tenth of a second
_CHECK_EVERY = 24 * 3600  # seconds between two checks of a larger one
_CHECKED = "checked.json"  # when that was, and the files as they were


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, else $XDG_CACHE_HOME/normlab, else ~/.cache/normlab."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "normlab"


def entry_name(
    name: str, fingerprint: str, image_size: int | None, seed: int | None, drop_rare: bool, full_range: bool
) -> str:
    """The folder of a source; `seed` is None when the source brings its own split."""
    facts = f"{_FORMAT} {fingerprint} {image_size} {seed} {drop_rare}" + " full range" * full_range
    key = hashlib.sha256(facts.encode()).hexdigest()[:32]
    return f"{re.sub('[^A-Za-z0-9.-]+', '_', name)[:40]}-{key}"


def find(folder: Path, skip_bad: bool) -> Dataset | None:
    """The dataset of an entry, memory-mapped; None if there is none, it is damaged, or it left out images unasked."""
    try:
        entry = json.loads((folder / "entry.json").read_text("utf-8"))
        if entry.pop("digest") != _digest(entry) or (entry["skipped"] and not skip_bad):
            return None
        splits = read_splits(folder)
        if not (all(map(_plain, splits.values())) and _as_written(folder, splits, entry["hash"])):
            return None
        return Dataset(
            entry["name"],
            tuple(entry["class_names"]),
            splits["train"],
            splits["val"],
            splits["test"],
            np.array(entry["channel_mean"], np.float32),
            np.array(entry["channel_std"], np.float32),
            entry["hash"],
            tuple(entry["notes"]),
            tuple(
                Copies(of, among, tuple((int(a), int(b), bool(exact)) for a, b, exact in rows))
                for of, among, rows in entry["copies"]
            ),
            tuple(entry.get("levels") or SIXTEEN_BITS),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plain(split: Split) -> bool:
    return split.images.dtype == np.uint8 and split.labels.dtype == np.int64 and len(split.images) == len(split.labels)


def _as_written(folder: Path, splits: dict[str, Split], hash: str) -> bool:
    """Whether pixels and labels have the digest they had, by reading them or by having read them lately."""
    files = sorted(folder.glob("*.npy"))
    facts = {
        file.name: (found.st_size, found.st_mtime_ns, found.st_ctime_ns) for file in files if (found := file.stat())
    }
    large = sum(size for size, *_ in facts.values()) > _SMALL
    mark = _digest({"files": facts, "hash": hash})
    if large and _checked_lately(folder, mark):
        return True
    if digest(splits) != hash:
        return False
    if large:
        with contextlib.suppress(OSError):  # a cache that may only be read is checked every time
            write_text(folder / _CHECKED, json.dumps({"files": mark, "at": time.time()}))
    return True


def _checked_lately(folder: Path, mark: str) -> bool:
    try:
        checked = json.loads((folder / _CHECKED).read_text("utf-8"))
        return bool(checked["files"] == mark and 0 <= time.time() - checked["at"] < _CHECK_EVERY)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_splits(folder: Path) -> dict[str, Split]:
    """The splits of an entry, images memory-mapped."""
    return {
        name: Split(
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / f"{name}-labels.npy", allow_pickle=False),
        )
        for name in SPLITS
    }


@contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds and vanishes when it does not.

    Two processes may write the same entry: each has a scratch folder, and the first to finish wins.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder.parent))
    try:
        yield scratch
        try:
            os.rename(scratch, folder)
        except OSError:
            if find(folder, skip_bad=True) is None:  # a damaged entry is in the way
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Removes what writers that were killed left behind."""
    for scratch in root.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED:
                shutil.rmtree(scratch, ignore_errors=True)


class ImageFile:
    """A .npy file of uint8 (count, C, H, W), written block by block.

    It goes through `write`, not through a memory map: on a full disk a map kills the process, a write raises.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]) -> None:
        self._file: IO[bytes] = path.open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, pixels: Pixels) -> None:
        self._file.write(np.ascontiguousarray(pixels).data)

    def close(self) -> None:
        self._file.close()


def save_labels(scratch: Path, name: str, labels: Labels) -> None:
    np.save(scratch / f"{name}-labels.npy", labels, allow_pickle=False)


def save_entry(scratch: Path, dataset: Dataset, skipped: int) -> None:
    entry = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "channel_mean": dataset.channel_mean.tolist(),
        "channel_std": dataset.channel_std.tolist(),
        "hash": dataset.hash,
        "notes": dataset.notes,
        "copies": [(one.of, one.among, one.rows) for one in dataset.copies],
        "skipped": skipped,
        "levels": dataset.levels,
    }
    entry = json.loads(json.dumps(entry))  # as it is read: lists for tuples
    (scratch / "entry.json").write_text(json.dumps({**entry, "digest": _digest(entry)}, indent=1), "utf-8")


def check_room(root: Path, need: int) -> None:
    """DataError if the disk has fewer than `need` bytes left."""
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataError(
            f"no room for the decoded images in {str(root)!r}: {need / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB "
            "free; free some space, ask for a smaller image size, or choose another cache folder"
        )


@contextmanager
def disk_trouble(root: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write the cache into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"cannot write the decoded images to the cache folder {str(root)!r}: {error.strerror or error}; "
            + ("free some space or " if full else "")
            + "choose another folder (cache_dir, or the environment variable XDG_CACHE_HOME)"
        ) from error
