"""`python -m benchmarks.census`: every family of timm and tiny configurations of transformers, with random weights.

Needs timm (with torchvision) and transformers: `pip install timm torchvision transformers`. Models are visited on one
thread, in a process that they share until one takes too long. What was visited stands in the file `--rows`, and is not
visited again: interrupt it as you like. `--write docs/models.md` puts the table into the page; `--speed` measures ten
models before and after instead; `--count` only swaps, and runs nothing, which also serves for the models that have no
row yet.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.census.models import TRANSFORMERS, families
from normlab.bench.machine import describe, line

START, END = "<!-- census -->", "<!-- end of census -->"
OURS, THEIRS = ("ours", "with_fused"), ("torch", "torch_moved")  # distances of a row
STUCK = 30  # times the seconds of a model, by the clock


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.census", description=__doc__)
    parser.add_argument(
        "models", nargs="*", help="names such as timm:resnet or transformers:llama; all of them if none"
    )
    parser.add_argument("--seconds", type=float, default=240, help="of the processor for a model, at most (240)")
    parser.add_argument("--write", type=Path, help="the page to write the table into")
    parser.add_argument(
        "--rows", type=Path, help="a file of rows: read at the start, those models are not visited again"
    )
    parser.add_argument("--speed", action="store_true", help="time ten models before and after, instead")
    parser.add_argument("--count", action="store_true", help="what is taken, without running a model")
    parser.add_argument("--visit", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.speed:
        from benchmarks.census.speed import print_speed

        print_speed(given.models)
        return 0
    if given.visit:
        return _visit(given.models, given.count, given.seconds)
    names = given.models or [*(f"timm:{f}" for f in families()), *(f"transformers:{t}" for t in TRANSFORMERS)]
    rows = (
        [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows and given.rows.exists() else []
    )
    seen = {row["model"] for row in rows}
    for row in _rows([name for name in names if name not in seen], given.seconds, given.count):
        rows.append(row)
        print(_line(row), flush=True)
        if given.rows:
            with given.rows.open("a") as file:
                print(json.dumps(row), file=file)
    rows = sorted((row for row in rows if row["model"] in names), key=lambda row: names.index(row["model"]))
    print("\n" + summary(rows))
    if given.write:
        page = given.write.read_text()
        before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
        command = f"`{' '.join(['python -m benchmarks.census', *sys.argv[1:]])}`, one thread"
        given.write.write_text(
            f"{before}\n{summary(rows)}\n\n{command}: {line(describe('cpu'))}.\n\n{table(rows)}\n{after}"
        )
    return 0


def _visit(names: list[str], only_count: bool, seconds: float) -> int:
    import torch

    from benchmarks.census.visit import count, visit

    torch.set_num_threads(1)
    for name in names:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # which ends the process, however busy the machine is
        try:
            row = count(name) if only_count else visit(name)
        except Exception as error:
            row = {
                "model": name,
                "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            }
        print("row", json.dumps(row), flush=True)
    return 0


def _rows(names: list[str], seconds: float, only_count: bool) -> Any:
    """A row of each model; a process that ends before its models have one is followed by another."""
    options = ["--visit", "--seconds", str(seconds), *(["--count"] if only_count else [])]
    while names:
        command = [sys.executable, "-m", "benchmarks.census", *options, *names]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            while names:
                if not select.select([process.stdout], [], [], STUCK * seconds)[0]:
                    process.kill()
                found = process.stdout.readline()
                if not found:
                    yield {"model": names.pop(0), "failed": _describe_end(process.wait(), seconds)}
                    break
                if found.startswith("row "):
                    names.pop(0)
                    yield json.loads(found[4:])


def _describe_end(code: int, seconds: float) -> str:
    if code in (-signal.SIGPROF, -signal.SIGKILL):
        return f"more than {seconds:.0f} seconds" if code == -signal.SIGPROF else "it stands still, or lacks memory"
    return f"the process ended with {code}"


def _line(row: dict[str, Any], columns: int = 4) -> str:
    if "failed" in row:
        return f"| {row['model']} | | | not visited: {row['failed']} {'| ' * columns}|"
    why = "; ".join(f"{sum(w == v for w in row['left'].values())} {v}" for v in dict.fromkeys(row["left"].values()))
    silent = f"silently: {', '.join(row['silent'])}" if row["silent"] else ""
    lost = "" if row.get("restored", True) else "restore_norms leaves something"
    left = "; ".join(v for v in (why, silent, lost, row.get("refused", "")) if v)
    name = row["model"].partition(":")[2]
    shown = name if row["architecture"] == name else f"{name}: {row['architecture']}"
    cells = [shown, row["taken"] + len(row["left"]) + len(row["silent"]), row["taken"], left.replace("|", "/")]
    if "torch" in row:
        exact = f"{worst(row, 'in_float64'):.0e}" if "in_float64" in row else ""
        cells += [row["fused"], f"{worst(row, *THEIRS):.0e}", f"{worst(row, *OURS):.0e}", exact]
    else:
        cells += [""] * columns
    return f"| {' | '.join(map(str, cells))} |"


def worst(row: dict[str, Any], *whose: str) -> float:
    """The largest of these distances of a row."""
    return max((v for who in whose for v in row.get(who, {}).values()), default=0.0)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    parts = []
    for library in ("timm", "transformers"):
        own = [row for row in rows if row["model"].startswith(library)]
        more = ["fused", "torch", "ours", "in float64"] if any("torch" in row for row in own) else []
        head = [f"{library} {version(library)}", "norms", "taken", "left, and why", *more]
        parts.append(
            "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_line(row, len(more)) for row in own)])
        )
    return "\n\n".join(parts)


def summary(rows: list[dict[str, Any]]) -> str:
    """What came of it, in a few sentences."""
    done = [row for row in rows if "failed" not in row]
    taken, left, silent = (sum(r["taken"] for r in done), *(sum(len(r[k]) for r in done) for k in ("left", "silent")))
    whole = sum(not r["left"] and not r["silent"] for r in done)
    said = (
        f"Of {len(rows)} models {len(done)} were visited. They have {taken + left + silent} normalization layers: "
        f"{taken} ({taken / max(taken + left + silent, 1):.1%}) were taken, {left} were left with a reason, {silent} "
        f"silently. {whole} models were taken whole."
    )
    run = [row for row in done if "torch" in row]
    if not run:
        return said
    ratios = sorted(worst(r, *OURS) / max(worst(r, *THEIRS), 1e-9) for r in run)
    exact = [worst(r, "in_float64") for r in run if "in_float64" in r]
    return (
        f"{said} {len(run)} models ran. Of these, `fuse_norms` fused {sum(r['fused'] for r in run)} norms with what "
        f"follows, and refused {sum('refused' in r for r in run)} models. The distance from float64 is "
        f"{ratios[len(ratios) // 2]:.2g} times torch's in the median model, at most {ratios[-1]:.2g} times."
        + (f" {len(exact)} ran in float64 with ours, too: at most {max(exact):.0e} from torch's." if exact else "")
    )


if __name__ == "__main__":
    raise SystemExit(main())
