"""Locks that die with their process: one byte of a file for each cell, held through the kernel.

No clock and no lease decides whether a cell is being worked on: the kernel drops a lock when the last process
that holds it is gone, however it went. On Linux these are open-file-description locks, so that a driver and the
worker that inherited its file hold a cell *together*: it is free when both have let go. Windows locks bytes of a
file by `msvcrt`.
"""

from __future__ import annotations

import os
import struct
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from normlab.errors import UsageError


def _module(name: str) -> Any:
    """A module that some systems do not have, or None."""
    try:
        return import_module(name)
    except ImportError:
        return None


ALL_CELLS = 0  # the number of no cell, held where one command alone may work
fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
_OPEN_FILE_DESCRIPTION = hasattr(fcntl, "F_OFD_SETLK")


class CellLocks:
    """Locks on cells, by number, in one file. `fileno` may be handed to a child, which then holds them too.

    Where the system has no open-file-description locks (not Linux), record locks stand in: they die with their
    process as well, but a worker does not share them. Raises UsageError where the system has no locks at all.
    """

    def __init__(self, path: Path) -> None:
        if fcntl is None and msvcrt is None:
            raise UsageError(
                f"{path}: this system has neither fcntl nor msvcrt, and a study needs locks on its cells; "
                "run it on Linux, macOS or Windows"
            )
        self._held: set[int] = set()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(path, flags, 0o644)

    def fileno(self) -> int:
        return self._file

    def acquire(self, number: int) -> bool:
        """Take the lock of a cell without waiting; False if somebody else holds it."""
        try:
            self._set(True, number)
        except BlockingIOError:
            return False
        except PermissionError:  # what some systems raise instead
            return False
        self._held.add(number)
        return True

    def release(self, number: int) -> None:
        """Let go of a cell, for everybody who shares this file."""
        if fcntl is not None or number in self._held:
            self._set(False, number)
        self._held.discard(number)

    def held_elsewhere(self, number: int) -> bool:
        """Whether somebody who does not share this file holds the cell."""
        if fcntl is None:  # which cannot be asked, only tried
            if number in self._held:
                return False
            free = self.acquire(number)
            if free:
                self.release(number)
            return not free
        query = _flock(fcntl.F_WRLCK, number)
        command = fcntl.F_OFD_GETLK if _OPEN_FILE_DESCRIPTION else fcntl.F_GETLK
        found = fcntl.fcntl(self._file, command, query)
        return bool(struct.unpack_from("hh", found)[0] != fcntl.F_UNLCK)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> CellLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set(self, locked: bool, number: int) -> None:
        if fcntl is None:
            os.lseek(self._file, number, os.SEEK_SET)
            msvcrt.locking(self._file, msvcrt.LK_NBLCK if locked else msvcrt.LK_UNLCK, 1)
        elif _OPEN_FILE_DESCRIPTION:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK if locked else fcntl.F_UNLCK, number))
        else:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB if locked else fcntl.LOCK_UN, 1, number)


def _flock(kind: int, number: int) -> bytes:
    """struct flock: type, whence, start, length, pid (which must be 0)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0)
