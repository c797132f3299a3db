"""Check a target in a subprocess that it cannot get out of: it may hang, exit, crash, print or lie.

The target's process returns arrays. The mathematics are judged here, on numbers that it never sees; how many checks
there are is counted here, too. Checks of the engineering and the numerics run where the target is.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from typing import IO, Any, BinaryIO

from normlab.check import wire
from normlab.check.descendants import Family, reaped
from normlab.check.dialect import known
from normlab.check.engine import examine, failure
from normlab.check.process import SideEffects
from normlab.check.report import SIGNS, Finding, Report
from normlab.check.subjects import TargetFailure
from normlab.check.subjects.remote import RemoteSubject, result

# until the worker has imported what it checks with, a slow disk or a busy machine is no fault of the target
STARTUP_SECONDS = 600.0
PATIENCE = 20  # times the limit, for a process that others keep from the processor
_MOST_REPLIES = 4  # that wait; a target that sends more than it is asked for waits, too
LAST_WORDS = 1 << 16  # bytes of standard error that are kept
_now = time.monotonic


def check_contained(
    target: str,
    kind: str | None = None,
    dialect: str = "auto",
    quick: bool = False,
    elements: int | None = None,
    limit: float = 60.0,
    strict: bool = False,
) -> Report:
    """Check TARGET in a process of its own; `limit` is how many seconds one check may wait for it.

    Whatever the target does is a finding: what it printed is dropped, an exit or a crash names the check during
    which it happened, a hang is ended. Raises UsageError when TARGET names nothing that can be checked.
    """
    began = time.perf_counter()
    known(kind, dialect)
    job = {"target": target, "kind": kind, "dialect": dialect, "quick": quick, "elements": elements, "strict": strict}
    report = Report(target, strict=strict, complete=False)
    with reaped():
        line = Line(job, limit)
        try:
            _examine(line, report, job)
        except Gone as e:
            report.findings.append(Finding(line.check, "bug", str(e), e.cause))
        finally:
            said = line.end()
    if said is not None:
        report.findings.append(said)
    report.seconds = time.perf_counter() - began
    return report


def _examine(line: Line, report: Report, job: dict[str, Any]) -> None:
    line.ready()
    try:
        subject = RemoteSubject.loaded(line)
    except TargetFailure as e:
        report.findings.append(failure("target.load", e))
        report.complete = True
        return
    examine(
        subject,
        job["kind"],
        job["dialect"],
        job["quick"],
        elements=job["elements"],
        strict=job["strict"],
        starting=line.begin,
        effects=_RemoteEffects(line),
        elsewhere=line.finding,
        report=report,
    )
    report.complete = True


class Gone(BaseException):
    """The target's process has ended, or hangs; no check may take it for an error that it looks for."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class Line:
    """The target's process, asked one thing at a time."""

    def __init__(self, job: dict[str, Any], limit: float) -> None:
        self.limit, self.check, self._waited = limit, "target.load", 0.0
        self._used: float | None = 0.0  # of the processor before this check; None until a reply is waited for
        self._process = subprocess.Popen(
            [sys.executable, "-m", "normlab.check.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **_settings(job["quick"])},
        )
        self._family = Family(self._process)
        self._replies: queue.Queue[Any] = queue.Queue(_MOST_REPLIES)
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._errors = b""
        self._threads = [
            threading.Thread(target=run, args=(pipe,), daemon=True)
            for run, pipe in (
                (self._read, self._process.stdout),
                (self._write, self._process.stdin),
                (self._drain, self._process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> None:
        """Wait until the process has imported what it needs."""
        self._wait(STARTUP_SECONDS)

    def begin(self, check: str) -> None:
        """Another check begins: it has all its time."""
        self.check, self._waited, self._used = check, 0.0, None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises Gone when none comes."""
        self._requests.put(wire.pack(request))
        reply = self._wait(self.limit)
        if not isinstance(reply, dict):
            raise Gone("the layer's process sent what is no reply", "bad-answer")
        return reply

    def finding(self, name: str) -> Finding:
        """What the process found in a check of its own."""
        told = result(self.ask({"op": "check", "given": {"name": name}}))
        if not isinstance(told, dict) or told.get("status") not in SIGNS:
            raise Gone("the layer's process sent what is no finding", "bad-answer")
        text = {k: None if told.get(k) is None else str(told[k]) for k in ("cause", "formula", "example")}
        measured = told.get("measured")
        return Finding(
            name,
            told["status"],
            str(told.get("message")),
            **text,
            measured=measured if isinstance(measured, dict) else {},
        )

    def end(self) -> Finding | None:
        """End the process and whatever it started; what is to be said of that."""
        self._requests.put(None)
        said = self._family.end()
        for thread in self._threads:
            thread.join(1.0)
        return said

    def _wait(self, limit: float) -> Any:
        began = _now()
        while True:
            try:
                reply = self._replies.get(timeout=0.02)
            except queue.Empty:
                if self._process.poll() is not None and self._replies.empty():
                    raise self._describe_end() from None
                if self._used is None:
                    _, self._used = self._family.use_of_processor()
                waited = self._waited + _now() - began
                if waited > limit and not (waited < PATIENCE * limit and self._is_starved(limit)):
                    said = f"the layer hangs: no answer within {limit:g} s; it was ended"
                    raise Gone(said, "hangs") from None
                continue
            if isinstance(reply, wire.Broken):
                raise Gone(f"the layer's process sent what is no reply: {reply}", "bad-answer")
            self._waited += _now() - began
            return reply

    def _is_starved(self, limit: float) -> bool:
        """Whether the process would run and does not come to it: others have the processor, and it does not hang."""
        would_run, used = self._family.use_of_processor()
        return would_run and used - (self._used or 0.0) < limit

    def _describe_end(self) -> Gone:
        code = self._process.returncode
        self._threads[-1].join(1.0)
        how = f"with signal {-code} (a crash)" if code < 0 else f"with exit code {code}"
        words = self._errors.decode(errors="replace").strip().splitlines()
        said = f"; its last words: {words[-1][:200]}" if words else ""
        return Gone(f"the layer ended the process {how}{said}", "ends-process")

    # --- one thread for each pipe: a full one, or an empty one, stops nothing else ---

    def _read(self, pipe: BinaryIO) -> None:
        with contextlib.suppress(OSError), pipe:
            try:
                while (frame := wire.read(pipe)) is not None:
                    self._replies.put(wire.unpack(frame))
            except wire.Broken as e:
                self._replies.put(e)

    def _write(self, pipe: BinaryIO) -> None:
        with contextlib.suppress(OSError), pipe:
            while (frame := self._requests.get()) is not None:
                pipe.write(frame)
                pipe.flush()

    def _drain(self, pipe: IO[bytes]) -> None:
        """Read standard error and keep its end."""
        with contextlib.suppress(OSError), pipe:
            while part := os.read(pipe.fileno(), LAST_WORDS):
                self._errors = (self._errors + part)[-LAST_WORDS:]


def _settings(quick: bool) -> dict[str, str]:
    """Variables of the target's process.

    The compilers of torch and normlab start no processes there, for which the layer would be blamed. Tiny arrays want
    one thread: a second one only waits for the first.
    """
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "NORMLAB_COMPILING": "alone"}
    return alone | ({"OMP_NUM_THREADS": "1"} if quick else {})


class _RemoteEffects(SideEffects):
    """What the target changed of the process that it runs in."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def finding(self) -> Finding | None:
        told = result(self._line.ask({"op": "effects", "given": {}}))
        self.changed = [str(name) for name in told] if isinstance(told, list) else []
        return super().finding()
