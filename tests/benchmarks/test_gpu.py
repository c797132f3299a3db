"""`python -m benchmarks.gpu`: what fails or takes too long costs its own rows only, and a dry run goes through all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import page, parts

ROOT = Path(__file__).parents[2]


def test_a_part_without_what_it_needs_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    found = program.run_part("compare", ("json", "no_such_module"), 60, dry=True)
    assert (found["state"], found["rows"]) == ("skipped", [])
    assert "compare: skipped (missing here: no_such_module)" in capsys.readouterr().out


def test_no_part_is_started_when_no_time_is_left() -> None:
    assert program.run_part("step", (), 0.5, dry=True) == {"state": "skipped", "why": "no time is left", "rows": []}


@pytest.mark.parametrize("seconds", [1])
def test_a_part_is_stopped_at_its_limit(seconds: int) -> None:
    """The interpreter takes several seconds for it on any machine."""
    found = program.run_part("step", (), seconds, dry=True)
    assert found["state"] == "out of time"
    assert found["why"] == "stopped after 1 s"


def test_an_unknown_part_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--parts", "layer"])
    assert f"'layer' is not a part; expected some of: {', '.join(parts.PARTS)}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([]) == 1
    assert "no CUDA device is visible to torch: --dry-run exercises the parts" in capsys.readouterr().err


def results(**found: Any) -> dict[str, Any]:
    machine = {"gpu": "A GPU", "cache_bytes": 1 << 20, "python": "3.12"}
    return {"dry_run": False, "machine": machine, "parts": found}


def test_page() -> None:
    """Every part has its table; a failed row is named; a part says how it ended."""
    layer = {"norm": "bn", "form": "norm", "shape": [2, 3], "layout": "first", "dtype": "float32"}
    layer |= {"ours_ms": 1.0, "floor_share": 0.9, "eager_ratio": 1.5}
    steps = [
        {"dtype": "bfloat16", "side": side, "how": how, "ms": ms}
        for side, how, ms in (("stock", "eager", 6.0), ("stock", "graph", 3.0), ("ours", "graph", 2.0))
    ]
    launch = {"norm": "bn"} | {f"{side}_{what}_us": 7.0 for side in ("ours", "eager") for what in ("forward", "both")}
    text = page.page(
        results(
            layers={"state": "done", "seconds": 3.0, "rows": [layer, {"row": "gn", "error": "no room"}]},
            launches={"state": "done", "seconds": 1.0, "rows": [launch]},
            step={"state": "out of time", "why": "stopped after 9 s", "seconds": 9.0, "rows": steps},
            tests={"state": "done", "rows": [{"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "failed"}]},
            compare={"state": "skipped", "why": "missing here: numba", "rows": []},
        )
    )
    for expected in (
        "| bn, norm, 2x3, first, float32 | 1.000 | 90% | 1.50x |  |",
        "- error: gn no room",
        "out of time: stopped after 9 s, 9.0 s, 3 rows",
        "bfloat16: the best of torch's over the best of ours: 1.50x",
        "1 passed, 1 failed",
        "- failed: `b`",
        "skipped: missing here: numba",
    ):
        assert expected in text


def printed(module: str, *words: str) -> list[list[str]]:
    """The cells of the table that a module prints."""
    pytest.importorskip("triton", reason="triton is not installed: it can be asked nothing")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90", "100"])
def test_compiled_for(target: str) -> None:
    """Loads are of 128 bits, and next to nothing is spilled (at most eight numbers, outside of the loops)."""
    for _, case, kernel, registers, spilled, widest in printed("compiled", target):
        assert 0 < int(registers) <= 255, (case, kernel)
        assert int(spilled) <= 32, (case, kernel)
        assert int(widest) == 128, (case, kernel)


@pytest.mark.slow
def test_bytes_moved() -> None:
    """A norm within samples moves the floor and its grids; one over the batch reads x twice each way, and dy too."""
    for norm, form, _, _, _, memory, asked in printed("traffic"):
        limit = 1.7 if norm in ("bn", "bin") else 1.35 if "res" in form else 1.2
        assert 1.0 <= float(memory) <= limit, (norm, form)
        assert float(memory) <= float(asked) <= 1.8, (norm, form)


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Every part comes to its end on the CPU, on Triton's interpreter."""
    missing = "no triton whose interpreter works with this NumPy (3.7 or later): it cannot exercise the parts"
    pytest.importorskip("triton", minversion="3.7", reason=missing)
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "dry-run.json").read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(parts.PARTS, "done")
    assert all(part["rows"] for part in found["parts"].values())
    assert "## compare" in (tmp_path / "dry-run.md").read_text()
