"""Run the checks in a subprocess that a hostile target cannot get out of: it may hang, exit, crash or print."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from normlab.check.dialect import known
from normlab.check.report import Finding, Report
from normlab.errors import NormlabError, UsageError

# until the worker has imported what it checks with, a slow disk or a busy machine is no fault of the target
STARTUP_SECONDS = 600.0
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
    """Check TARGET in a process of its own; `limit` is how many seconds one check may take.

    Whatever the target does is a finding: what it printed is dropped, an exit or a crash names the check during
    which it happened, a hang is ended. Raises UsageError when TARGET names nothing that can be checked.
    """
    began = time.perf_counter()
    known(kind, dialect)
    job = {"target": target, "kind": kind, "dialect": dialect, "quick": quick, "elements": elements}
    job["strict"] = strict
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events"
        events.touch()
        with open(Path(folder) / "errors", "w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "normlab.check.worker", json.dumps(job), str(events)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                # tiny arrays: a second thread only waits for the first
                env={**os.environ, "OMP_NUM_THREADS": "1"} if quick else None,
            )
            try:
                hung = _watch(process, events, limit)
            finally:
                _end(process)
            errors.seek(0)
            last_words = errors.read().strip().splitlines()
        report = _gather(target, events.read_text().splitlines(), hung, limit, process.returncode, last_words)
    report.strict = strict
    report.seconds = time.perf_counter() - began
    return report


def _watch(process: subprocess.Popen[bytes], events: Path, limit: float) -> bool:
    """Wait for the process; True when no event came for `limit` seconds since the worker's first."""
    size, since = 0, _now()
    while True:
        try:
            process.wait(0.02)
            return False
        except subprocess.TimeoutExpired:
            now = events.stat().st_size
            if now != size:
                size, since = now, _now()
            elif _now() - since > (limit if size else STARTUP_SECONDS):
                return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _gather(target: str, lines: list[str], hung: bool, limit: float, code: int, last_words: list[str]) -> Report:
    report, current, done = Report(target), "target.load", False
    for line in lines:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:  # the process ended in the middle of a line
            continue
        if "usage" in event:
            kind = UsageError if event["code"] == UsageError.exit_code else NormlabError
            raise kind(event["usage"])
        current = event.get("starting", current)
        if "finding" in event:
            report.findings.append(Finding(**event["finding"]))
        if "done" in event:
            report.form, report.dialect = event["done"]["form"], event["done"]["dialect"]
            done = True
    report.complete = done and not hung
    if hung:
        report.findings.append(
            Finding(current, "bug", f"the layer hangs: no answer within {limit:g} s; it was ended", "hangs")
        )
    elif not done:
        how = f"with signal {-code} (a crash)" if code < 0 else f"with exit code {code}"
        said = f"; its last words: {last_words[-1][:200]}" if last_words else ""
        report.findings.append(Finding(current, "bug", f"the layer ended the process {how}{said}", "ends-process"))
    return report
