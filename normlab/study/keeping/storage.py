"""Files that are whole or not there: on this machine's disk, or on storage that several machines share."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any, Protocol

from normlab.errors import files, require


class Storage(Protocol):
    """A flat place for files, by name."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


def open_storage(where: Path | str) -> Storage:
    """The storage at a path, or at a URL for fsspec ("s3://bucket/folder", "file:///mnt/shared")."""
    return SharedStorage(where) if isinstance(where, str) and "://" in where else LocalDirectory(Path(where))


class LocalDirectory:
    """A directory on disk; every write is whole (`normlab.errors.files`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        return [path.name for path in self._directory.iterdir()] if self._directory.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self._directory / name, data)

    def delete(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class SharedStorage:
    """A folder behind an fsspec URL. Object stores put whole objects; elsewhere a file is moved into place."""

    def __init__(self, url: str) -> None:
        require(f"checkpoints at {url}", "ray", "fsspec")
        import fsspec

        self._files: Any
        self._files, self._folder = fsspec.core.url_to_fs(url)

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        if not self._files.exists(self._folder):
            return []
        return [entry.rpartition("/")[2] for entry in self._files.ls(self._folder, detail=False)]

    def read(self, name: str) -> bytes:
        data: bytes = self._files.cat_file(f"{self._folder}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        self._files.makedirs(self._folder, exist_ok=True)
        temporary = f"{self._folder}/{name}.{uuid.uuid4().hex}.part"
        self._files.pipe_file(temporary, data)
        self._files.mv(temporary, f"{self._folder}/{name}")

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._folder}/{name}")
