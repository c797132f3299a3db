"""Files by relative name, from a folder, a zip or a tar; an archive is read in place and never unpacked to disk."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from normlab.data._limits import check_depth, check_unpacked
from normlab.data._source import Encoded, listing
from normlab.errors import DataError

FILE_LIMIT = 512 << 20  # bytes; no image and no batch file comes near it
_CLUTTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
# what zipfile, tarfile and their decompressors raise on damaged input
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)

Info = TypeVar("Info")


@dataclass(frozen=True)
class Tree:
    """Relative '/'-separated names of files and folders; `read` streams contents in the order it is asked."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Encoded]]


def open_tree(path: Path) -> Tree | None:
    """The tree of a folder, a zip or a tar; None if the path is none of them."""
    if path.is_dir():
        return _folder(path)
    if zipfile.is_zipfile(path):
        return _zip(path)
    return _tar(path) if _is_tar(path) else None


def fingerprint(path: Path) -> str:
    """Changes with the names, sizes or times of the files, and with the first and last bytes of a single file."""
    sha = hashlib.sha256(os.fsencode(path.resolve()))
    if path.is_dir():
        tree = _folder(path)
        for name in tree.folders:
            sha.update(b"\0d" + os.fsencode(name))
        for name in tree.names:
            sha.update(b"\0f" + os.fsencode(name) + stamp(path / name))
        return sha.hexdigest()
    sha.update(stamp(path))
    with path.open("rb") as file:
        sha.update(file.read(1 << 16))
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        sha.update(file.read())
    return sha.hexdigest()


def stamp(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:  # a dangling link: the reader will name it
        return b"\0?"
    return f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode()


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _folder(root: Path) -> Tree:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list the folder {error.filename!r}: {error.strerror}")

    names: list[str] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()
    for base, below, files in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(base)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        below[:] = [name for name in below if not _is_clutter(name)]
        start = Path(base).relative_to(root)
        check_depth(len(start.parts), start.as_posix())
        folders += [(start / name).as_posix() for name in below]
        names += [(start / name).as_posix() for name in files if not _is_clutter(name)]

    return Tree(tuple(sorted(names)), tuple(sorted(folders)), lambda wanted: read_files(root, wanted))


def read_files(root: Path, names: Sequence[str]) -> Iterator[Encoded]:
    """The contents of files whose paths start at `root`; of one that cannot be read, why."""
    for name in names:
        try:
            data = contents(root / name)
        except (OSError, DataError) as error:
            yield error
        else:
            yield data


def contents(path: Path) -> bytes:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise DataError("not a regular file")
    _check_size(found.st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise DataError(f"{size / 2**20:.0f} MiB, more than the {FILE_LIMIT >> 20} MiB a file may have")


def _zip(path: Path) -> Tree:
    with _archive_errors(), zipfile.ZipFile(path) as archive:
        check_unpacked(sum(info.file_size for info in archive.infolist()), path.stat().st_size)
        members, folders = _check_members(
            (info.filename, info, info.is_dir(), _zip_offence(info)) for info in archive.infolist()
        )

    def read(wanted: Sequence[str]) -> Iterator[Encoded]:
        with _archive_errors(), zipfile.ZipFile(path) as archive:
            for name in wanted:
                try:
                    _check_size(members[name].file_size)
                    data = archive.read(members[name])
                except _BROKEN as error:
                    yield error
                else:
                    yield data

    return Tree(tuple(sorted(members)), folders, read)


def _zip_offence(info: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    return "is encrypted" if info.flag_bits & 1 else ""


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, zlib.error, lzma.LZMAError):
        return True  # compressed and damaged: opening it says so


def _tar(path: Path) -> Tree:
    with _archive_errors(), tarfile.open(path) as archive:
        members, folders = _check_members(
            (info.name, info, info.isdir(), _tar_offence(info)) for info in _counted(archive, path)
        )

    def read(wanted: Sequence[str]) -> Iterator[Encoded]:
        with _archive_errors(), tarfile.open(path) as archive:
            for name in wanted:
                try:
                    _check_size(members[name].size)
                except DataError as error:
                    yield error
                    continue
                file = archive.extractfile(members[name])
                assert file is not None  # only regular files are admitted
                yield file.read()

    # in the archive's order, which is the only one that a compressed tar can be read in without starting over
    return Tree(tuple(members), folders, read)


def _counted(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, until they are more than it can hold: to reach one, those before it are unpacked."""
    packed, unpacked = path.stat().st_size, 0
    for info in archive:
        unpacked += info.size
        check_unpacked(unpacked, packed)
        yield info


def _tar_offence(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    return "" if info.isfile() or info.isdir() else "is a device or a pipe"


def _check_members(entries: Iterable[tuple[str, Info, bool, str]]) -> tuple[dict[str, Info], tuple[str, ...]]:
    """Files and folders of an archive by their clean names; a DataError naming every member that is not safe."""
    files: dict[str, Info] = {}
    folders: set[str] = set()
    offences: list[str] = []
    for raw, info, is_folder, offence in entries:
        slashed = raw.replace("\\", "/")
        pieces = [piece for piece in slashed.split("/") if piece not in ("", ".")]
        if ".." in pieces:
            offence = "leads out of the archive"
        elif slashed.startswith("/") or re.match("[A-Za-z]:", slashed):
            offence = "is an absolute path"
        if offence:
            offences.append(f"{raw!r} {offence}")
        elif pieces and not any(map(_is_clutter, pieces)):
            check_depth(len(pieces) - 1, slashed)
            name = "/".join(pieces)
            if is_folder:
                folders.add(name)
            else:
                files[name] = info
    if offences:
        raise DataError(
            f"the archive is refused: {len(offences)} of its members are not plain files inside it"
            + listing(offences, len(offences))
        )
    return files, tuple(sorted(folders))


@contextmanager
def _archive_errors() -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"cannot read the archive: {error or type(error).__name__}") from error
