"""`python -m benchmarks.gpu [--dry-run]`: all that a GPU is to be asked, in ten minutes, whatever fails.

Writes `results/gpu/<device>.json` after every part, and a page beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds, for all parts together
PATIENCE = 10  # times as long for a dry run, whose machine may be any
SCHEMA = 1  # of the JSON; grows when a field changes its meaning


def main(words: list[str] | None = None) -> int:
    """Run the parts, one after the other; 0 if none failed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in Triton's interpreter, on tiny sizes")
    parser.add_argument("--parts", help="which parts, as in layers,step (all)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for all of them ({LIMIT})")
    parser.add_argument("--out", type=Path, help="folder of the results (results/gpu; of a dry run, a temporary one)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined
    from benchmarks.gpu import page, parts

    if given.warm:
        parts.warm(given.warm[0].split(","), given.warm[1])
        return 0
    if given.part:
        parts.main(given.part, given.rows, given.dry_run)
        return 0
    wanted = given.parts.split(",") if given.parts else list(parts.PARTS)
    unknown = [name for name in wanted if name not in parts.PARTS]
    if unknown:
        parser.error(f"--parts: {unknown[0]!r} is not a part; expected some of: {', '.join(parts.PARTS)}")
    lacking = missing(given.dry_run)
    if lacking:
        print("cannot run:", "; ".join(lacking), file=sys.stderr)
        return 1
    from normlab.bench import machine

    facts = machine.describe(parts.device_of(given.dry_run))
    print(machine.line(facts), flush=True)
    results: dict[str, Any] = {"schema": SCHEMA, "dry_run": given.dry_run, "machine": facts, "parts": {}}
    name = "dry-run" if given.dry_run else re.sub(r"[^a-z0-9]+", "-", str(facts["gpu"]).lower()).strip("-")
    out = given.out or (Path(tempfile.mkdtemp()) if given.dry_run else ROOT / "results" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    patience = PATIENCE if given.dry_run else 1
    until = time.monotonic() + patience * given.limit
    warming = [] if given.dry_run else parts.start_warming(wanted)
    for part in [name for name in parts.PARTS if name in wanted]:
        if part != "tests":
            wait(warming, until - time.monotonic())
        seconds = min(patience * parts.PARTS[part].seconds, until - time.monotonic())
        results["parts"][part] = run_part(part, parts.PARTS[part].needs, seconds, given.dry_run)
        (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / f"{name}.md").write_text(page.page(results))
    print(f"written: {out / name}.json and .md")
    return int(any(found["state"] != "done" or _errors(found) for found in results["parts"].values()))


def wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait for all of them, in all no longer than this."""
    until = time.monotonic() + seconds
    while processes:
        try:
            processes[-1].wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(processes[-1])
        processes.pop()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that began a session of its own, and what it started: that would go on beside what is timed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def missing(dry: bool) -> list[str]:
    """What nothing runs without, each with what to do."""
    import torch

    found = [f"{name} is missing: pip install {name}" for name in ("numpy", "triton") if not find_spec(name)]
    if not dry and not torch.cuda.is_available():
        found.append("no CUDA device is visible to torch: --dry-run exercises the parts without one")
    if not dry and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")):
        found.append("Triton needs a C compiler to launch its kernels: install gcc, or set CC")
    return found


def run_part(name: str, needs: tuple[str, ...], seconds: float, dry: bool) -> dict[str, Any]:
    """A part in a process of its own: its state, its rows so far, and why there are no more."""
    absent = [module for module in needs if not find_spec(module)]
    if absent:
        return _print_state(name, {"state": "skipped", "why": f"missing here: {', '.join(absent)}", "rows": []})
    if seconds < 1:
        return _print_state(name, {"state": "skipped", "why": "no time is left", "rows": []})
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--rows", str(rows)]
        start = time.monotonic()
        process = subprocess.Popen([*command, *(["--dry-run"] if dry else [])], cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
            found: dict[str, Any] = {"state": "done"} if code == 0 else {"state": "failed", "why": f"exit code {code}"}
        except subprocess.TimeoutExpired:
            end(process)
            found = {"state": "out of time", "why": f"stopped after {seconds:.0f} s"}
        lines = rows.read_text().splitlines() if rows.exists() else []
        found |= {"seconds": round(time.monotonic() - start, 1), "rows": [json.loads(line) for line in lines]}
    return _print_state(name, found)


def _print_state(name: str, found: dict[str, Any]) -> dict[str, Any]:
    why = f" ({found['why']})" if "why" in found else ""
    print(f"{name}: {found['state']}{why}, {len(found['rows'])} rows, {_errors(found)} of them errors", flush=True)
    return found


def _errors(found: dict[str, Any]) -> int:
    return sum("error" in row or row.get("outcome") in ("failed", "error") for row in found["rows"])


if __name__ == "__main__":
    sys.exit(main())
