"""Kernel locks on cells: exclusive between processes and files, shared with a child, gone with their process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from normlab.study.keeping.locks import CellLocks
from tests.study.processes import kill, wait_until

HOLD = """
import sys, time
from pathlib import Path
from normlab.study.keeping.locks import CellLocks
locks = CellLocks(Path(sys.argv[1]))
assert locks.acquire(7)
print("held", flush=True)
time.sleep(60)
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
        wait_until(lambda: other.acquire(3), seconds=2)
    assert child.stdin is not None
    child.stdin.close()
