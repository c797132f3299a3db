"""From a path or a name to a dataset: checks the arguments, finds the reader, asks the cache first."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

import numpy as np

from normlab.data import _cache
from normlab.data._cifar import find_cifar, known_names, open_cifar
from normlab.data._dataset import Dataset, Split, measured
from normlab.data._decode import Request, decoded
from normlab.data._files import fingerprint, open_tree, stamp
from normlab.data._folder import open_folder
from normlab.data._hub import fetched, is_of_hub, is_saved
from normlab.data._leaks import without
from normlab.data._limits import lifted
from normlab.data._npz import open_npz
from normlab.data._parquet import named_files, open_parquet
from normlab.data._pixels import fit_array
from normlab.data._source import WHOLE, Progress, Source, printable
from normlab.data._split import assign
from normlab.data._table import open_table, table_mark
from normlab.errors import DataError, UsageError

MAX_SIZE = 4096
_ENDINGS = re.compile(r"(\.(tar|gz|tgz|bz2|xz|zip|npz|parquet|csv))+$", re.IGNORECASE)

UNDERSTOOD = """Understood are:
  digits                 1,797 handwritten digits that come with normlab
  a folder of images     class/image.jpg, or train/, val/, test/ above the classes; also in a .zip or .tar
  CIFAR-10, CIFAR-100    the official python or binary files, as a folder or as the .tar.gz
  an .npz file           x_train, y_train and, perhaps, x_val, y_val, x_test, y_test
  a .csv file            path,label (and perhaps split) of image files
  Parquet                a file, or a folder of train*.parquet, test*.parquet, with images (or paths) and labels
  hf:owner/name          a data set of the Hugging Face hub (needs normlab[hf])"""


def load(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    image_size: int | None = None,
    skip_bad: bool = False,
    drop_leaks: bool = False,
    drop_rare: bool = False,
    full_range: bool = False,
    no_limits: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The images of a folder, an archive, CIFAR, .npz, .csv, Parquet, the hub, or the embedded `digits`, in splits.

    A missing split is dealt out of the training images, class by class, by `seed`: 20 % if validation or test is
    missing, 15 % each if both are. `image_size=S` crops every image about its centre to a square and resizes it to
    S x S; by default images keep their size if it is the same for all and are brought to 64 x 64 if not.
    Pixels are uint8 (N, C, H, W), C = 1 if all images are gray, else 3. They are decoded once into `cache_dir`
    (default: $XDG_CACHE_HOME or ~/.cache, `normlab/`) and memory-mapped; `progress(done, total, text)` is called.

    Raises UsageError for a source that does not exist or a wrong argument, DataError for data that cannot be used,
    naming every file or field at fault; with `skip_bad`, unreadable images are left out instead, with `drop_rare`
    classes of too few images to be split, and `notes` says so. Copies of images among the splits are in `notes` too;
    with `drop_leaks` training and validation lose those that a later split has. With `full_range` 16-bit images are
    brought to 8 bits from the lowest to the highest pixel of them all, else from 0 to 65535. A source that unpacks like
    a bomb is refused, unless `no_limits`.
    """
    if not (_is_integer(seed) and seed >= 0):
        raise UsageError(f"seed is {seed!r}; expected an integer that is not negative")
    if not (image_size is None or (_is_integer(image_size) and 1 <= image_size <= MAX_SIZE)):
        raise UsageError(f"image_size is {image_size!r}; expected an integer from 1 to {MAX_SIZE}, in pixels")
    size = None if image_size is None else int(image_size)
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"data source {source!r} is neither a path nor a name. {UNDERSTOOD}")
    if source == "digits":
        if full_range:
            raise UsageError("full_range is for images of 16 bits, and those of 'digits' have 8; leave it out")
        return _digits(int(seed), size)

    root = _cache.cache_root(cache_dir)
    path = fetched(str(source), root) if is_of_hub(source) else _check_exists(source)
    name = printable(_ENDINGS.sub("", path.resolve().name)) or "data"
    with _name_in_errors(path), lifted(no_limits):
        mark = _cache_key(path)
        heard = _say_nothing if progress is None else progress
        request = Request(name, root, mark, int(seed), size, skip_bad, drop_rare, full_range, heard)
        for entry in (request.entry(split_given=True), request.entry(split_given=False)):
            if found := _cache.find(entry, skip_bad):
                break
        else:
            found = decoded(_open(path), request)
        return without(found) if drop_leaks else found


def _cache_key(path: Path) -> str:
    """Changes with the source, and with the files that a table names."""
    if _is_table(path):
        return table_mark(path)
    mark = fingerprint(path)
    if path.suffix.lower() != ".parquet" or find_spec("pyarrow") is None:
        return mark
    stamps = [stamp(file) for file in named_files(path, ("",))]
    return sha256(b"".join([mark.encode(), *stamps])).hexdigest() if stamps else mark


def _say_nothing(done: int, total: int, text: str) -> None: ...


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_exists(source: str | os.PathLike[str]) -> Path:
    text = str(source)
    try:
        path = Path(text).expanduser()
        if text and "\0" not in text and path.exists():
            if not (path.is_dir() or path.is_file()):  # opening a pipe would wait for ever, a device never end
                raise DataError(f"data source {text!r} is a pipe, a socket or a device; expected a file or a folder")
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be entered, ~nobody
        raise UsageError(f"data source {text!r}: {getattr(error, 'strerror', None) or error}. {UNDERSTOOD}") from error
    hint = "; did you mean 'digits'?" if difflib.get_close_matches(text.lower(), ["digits"]) else ""
    raise UsageError(f"data source {text!r} is neither an existing path nor a known name{hint}. {UNDERSTOOD}")


@contextmanager
def _name_in_errors(path: Path) -> Iterator[None]:
    """Puts the source's name in front of the message."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _open(path: Path) -> Source:
    """The source at `path`, by the reader that takes it."""
    if path.suffix.lower() == ".parquet":
        return _with_names(path, open_parquet(path, ("",)))
    if path.suffix.lower() == ".npz" or (zipfile.is_zipfile(path) and _holds_arrays(path)):
        return _with_names(path, open_npz(path))
    if _is_table(path):
        return open_table(path)
    tree = open_tree(path)
    if tree is None:
        raise DataError(f"a file of a kind that normlab does not read. {UNDERSTOOD}")
    if cifar := find_cifar(tree):
        return open_cifar(tree, *cifar)
    tables = tuple(name for name in tree.names if name.lower().endswith(".parquet"))
    if tables and path.is_dir():
        return _with_names(path, open_parquet(path, tables))
    if is_saved(path):
        raise DataError(f"a data set that the package datasets saved; name it hf:{path}")
    return open_folder(tree)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _with_names(path: Path, source: Source) -> Source:
    return Source(known_names(path, source.class_names), source.parts, source.shape, source.strays, source.notes)


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # the reader of archives says what is wrong
    return bool(names) and all(name.endswith(".npy") for name in names)


def _digits(seed: int, image_size: int | None) -> Dataset:
    """The 1,797 digits of 8 x 8 pixels (see digits.md), their 17 gray levels spread over 0 to 255."""
    with resources.files("normlab.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        levels, labels = arrays["levels"], arrays["labels"]
    images = np.rint(levels * (255 / 16)).astype(np.uint8)[:, None]
    if image_size is not None:
        images = np.stack([fit_array(image, image_size, image_size) for image in images])
    names = tuple("0123456789")
    rows = assign({WHOLE: labels}, {WHOLE: np.ones(len(labels), bool)}, names, seed)
    splits = {}
    for split, own in rows.items():
        splits[split] = Split(images[own[WHOLE]], labels[own[WHOLE]].astype(np.int64))
        splits[split].images.flags.writeable = False  # as a memory-mapped set is
    shadowed = ("'digits' is the set that comes with normlab; the folder of this name here is './digits'",)
    return measured("digits", names, splits, shadowed if Path("digits").exists() else ())
