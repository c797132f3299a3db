"""Processes that a target starts: ended with it, even where they begin a session of their own.

On Linux the process that waits for the target becomes a reaper: orphans of the target become its children, and are
found. Elsewhere only the target's own process group is ended, and `note` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from normlab.check.report import Finding

_SET_REAPER, _GET_REAPER = 36, 37  # prctl's PR_SET_CHILD_SUBREAPER and PR_GET_CHILD_SUBREAPER
_SECONDS = 5.0
_watched: set[int] = set()


@contextlib.contextmanager
def reaped() -> Iterator[None]:
    """Inside, orphaned descendants of this process become its children, on Linux."""
    before = ctypes.c_int(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_GET_REAPER, ctypes.byref(before), 0, 0, 0)
        libc.prctl(_SET_REAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if sys.platform == "linux" and not before.value:
            ctypes.CDLL(None).prctl(_SET_REAPER, 0, 0, 0, 0)


class Family:
    """The target's process and what comes of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._others = set(_children()) - {process.pid}
        _watched.add(process.pid)

    def use_of_processor(self) -> tuple[bool, float]:
        """Whether the target would run or read at present, and the seconds that it has run; (False, 0) if unknown.

        The target is its process with all threads, and what that waits for: the other processes of its session.
        """
        would_run, ticks = False, 0
        for pid in self._members():
            for thread in Path(f"/proc/{pid}/task").glob("*"):
                would_run |= _text_fields(thread)[:1] in (["R"], ["D"])  # D: it waits for a disk
            ticks += sum(map(int, _text_fields(Path(f"/proc/{pid}"))[11:15]))  # its own, and of those that have ended
        return would_run, ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0

    def _members(self) -> list[int]:
        """The processes of the session that the target's process leads."""
        if sys.platform != "linux":
            return []
        numbers = (int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit())
        return [n for n in numbers if _session(n) == self.process.pid]

    def end(self) -> Finding | None:
        """End the process, its group and all orphans of it; what is to be said of them."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        ended: set[int] = set()
        until = time.monotonic() + _SECONDS
        while strays := self._find_strays():
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                ended.add(pid)
            if time.monotonic() > until:
                break
        _watched.discard(self.process.pid)
        return self._report_strays(len(ended))

    def _find_strays(self) -> list[int]:
        """Orphans that came to this process: they are in another session, and were not there before."""
        if sys.platform != "linux":
            return []
        mine = os.getsid(0)
        return [p for p in _children() if p not in self._others and p not in _watched and _session(p) != mine]

    @staticmethod
    def _report_strays(ended: int) -> Finding | None:
        if ended:
            return Finding(
                "target.children",
                "bug",
                f"the target left {ended} process(es) running in sessions of their own; they were ended",
                "leaves-processes",
                "a layer starts no processes; what starts some waits for them",
            )
        return note()


def note() -> Finding | None:
    """What cannot be promised on this system; None on Linux."""
    if sys.platform == "linux":
        return None
    return Finding(
        "target.children",
        "note",
        f"on this system ({sys.platform}) a process that the target starts in a session of its own is not ended",
        "children-not-watched",
    )


def _children() -> list[int]:
    """The processes whose parent this one is."""
    if sys.platform != "linux":
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _field(entry, 1) == os.getpid():
            found.append(int(entry.name))
    return found


def _session(pid: int) -> int | None:
    return _field(Path(f"/proc/{pid}"), 3)


def _field(entry: Path, index: int) -> int | None:
    """A number of /proc/PID/stat, counted from the state, which follows the name in brackets."""
    try:
        return int(_text_fields(entry)[index])
    except (ValueError, IndexError):
        return None


def _text_fields(entry: Path) -> list[str]:
    """What /proc/PID/stat says behind the name; nothing of a process that has ended."""
    try:
        return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
