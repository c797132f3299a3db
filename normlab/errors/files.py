"""Files that are written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normlab.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskError(DataError, OSError):
    """A file cannot be written (exit code 6); `errno` is the operating system's."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another path to write to, whose file takes the place of `path` when the block succeeds.

    Readers see the old file or the new one, also after a crash: what was written is on the disk before it is renamed.
    If the block raises, the old file stays. Raises DiskError where the operating system refuses.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or /dev/stdout takes what it is given
        yield path
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except DiskError:  # of a file that the block wrote
        raise
    except OSError as e:
        advice = "; free some space and run it again" if e.errno in _FULL else ""
        refused = DiskError(f"cannot write {str(path)!r}: {e.strerror or e}{advice}")
        refused.errno = e.errno
        raise refused from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    with contextlib.suppress(OSError):  # not every system opens folders
        _sync(path.parent, os.O_RDONLY)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file at once (`whole`); raises DiskError."""
    with whole(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file at once (`whole`), its line ends as they are; raises DiskError.

    Bytes of a file's name that are not UTF-8 are spelled out.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_text(path: Path, most: int) -> str:
    """The UTF-8 text of a file or a pipe. Raises OSError, and ValueError where it has more than `most` bytes."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data.decode()


def to_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, arrays and their numbers are lists and numbers.

    `default` makes something of what JSON has no form for, as in `json.dumps`.
    """
    return json.dumps(_to_json(value), indent=indent, default=default, allow_nan=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy or torch
        return _to_json(value.tolist())
    return value


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
