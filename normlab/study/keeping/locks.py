"""Locks that die with their process: one byte of a file for each cell, held through the kernel.

No clock and no lease decides whether a cell is being worked on: the kernel drops a lock when the last process
that holds it is gone, however it went. On Linux these are open-file-description locks, so that a driver and the
worker that inherited its file hold a cell *together*: it is free when both have let go.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType

_OPEN_FILE_DESCRIPTION = hasattr(fcntl, "F_OFD_SETLK")


class CellLocks:
    """Locks on cells, by number, in one file. `fileno` may be handed to a child, which then holds them too.

    Where the system has no open-file-description locks (not Linux), record locks stand in: they die with their
    process as well, but a worker does not share them.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def fileno(self) -> int:
        return self._file

    def acquire(self, number: int) -> bool:
        """Take the lock of a cell without waiting; False if somebody else holds it."""
        try:
            self._set(fcntl.F_WRLCK, number)
        except BlockingIOError:
            return False
        except PermissionError:  # what some systems answer instead
            return False
        return True

    def release(self, number: int) -> None:
        """Let go of a cell, for everybody who shares this file."""
        self._set(fcntl.F_UNLCK, number)

    def held_elsewhere(self, number: int) -> bool:
        """Whether somebody who does not share this file holds the cell."""
        query = _flock(fcntl.F_WRLCK, number)
        command = fcntl.F_OFD_GETLK if _OPEN_FILE_DESCRIPTION else fcntl.F_GETLK
        answer = fcntl.fcntl(self._file, command, query)
        return struct.unpack_from("hh", answer)[0] != fcntl.F_UNLCK

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> CellLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set(self, kind: int, number: int) -> None:
        if _OPEN_FILE_DESCRIPTION:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(kind, number))
        else:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, number)


def _flock(kind: int, number: int) -> bytes:
    """struct flock: type, whence, start, length, pid (which must be 0)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0)
