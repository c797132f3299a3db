"""Kernel locks on cells: exclusive between processes and files, shared with a child, gone with their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.errors import UsageError
from normlab.study.keeping import locks
from normlab.study.keeping.locks import CellLocks
from tests.study.processes import kill, wait_until

HOLD = """
import sys, time
from pathlib import Path
from normlab.study.keeping.locks import CellLocks
locks = CellLocks(Path(sys.argv[1]))
assert locks.acquire(7)
print("held", flush=True)
time.sleep(1000)
"""


def test_a_cell_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    with CellLocks(tmp_path / "locks") as mine, CellLocks(tmp_path / "locks") as other:
        assert mine.acquire(1)
        assert not other.acquire(1)
        assert other.held_elsewhere(1)
        assert not mine.held_elsewhere(1)
        assert other.acquire(2), "cells are independent"
        mine.release(1)
        assert other.acquire(1)


def test_a_killed_process_lets_go_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "locks")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with CellLocks(tmp_path / "locks") as mine:
        assert not mine.acquire(7)
        kill(holder.pid)
        holder.wait()
        assert mine.acquire(7)
    holder.stdout.close()


def test_a_child_that_inherits_the_file_holds_on_when_the_parent_is_gone(tmp_path: Path) -> None:
    parent = CellLocks(tmp_path / "locks")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(parent.fileno(),))
    assert parent.acquire(3)
    parent.close()
    with CellLocks(tmp_path / "locks") as other:
        assert not other.acquire(3), "the child holds it still"
        kill(child.pid)
        child.wait()
        wait_until(lambda: other.acquire(3))
    assert child.stdin is not None
    child.stdin.close()


class _WindowsLocks:
    """`msvcrt`, as far as it locks: a byte belongs to the file that locked it, and to lock it twice is an error."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.owners: dict[int, int] = {}

    def locking(self, file: int, mode: int, count: int) -> None:
        place = os.lseek(file, 0, os.SEEK_CUR)
        assert count == 1
        if mode == self.LK_NBLCK and place not in self.owners:
            self.owners[place] = file
        elif mode == self.LK_UNLCK and self.owners.get(place) == file:
            del self.owners[place]
        else:
            raise PermissionError(13, "Permission denied")


# Bug: the module imported `fcntl`, which Windows does not have.
def test_bytes_are_locked_as_windows_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "_OPEN_FILE_DESCRIPTION", False)
    monkeypatch.setattr(locks, "msvcrt", _WindowsLocks())
    test_a_cell_belongs_to_one_at_a_time(tmp_path)
    with CellLocks(tmp_path / "locks") as mine:
        assert not mine.held_elsewhere(3)
        mine.release(3)
        assert mine.acquire(3)


def test_a_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", None)
    with pytest.raises(UsageError, match="neither fcntl nor msvcrt"):
        CellLocks(tmp_path / "locks")
