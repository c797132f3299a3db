"""One line in a test file enrols a layer: a test per group of checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
import torch
import normlab.check

class Biased(torch.nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1.0

test_stock = normlab.check.enrol(torch.nn.BatchNorm2d)
test_shifted = normlab.check.enrol(Biased, kind="batch")

def test_something_else():
    assert True
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_layers.py").write_text(FILE)
    # the installed package's entry point loads the plug-in
    command = [sys.executable, "-m", "pytest", "-W", "error", *arguments]
    return subprocess.run([*command, "test_layers.py"], cwd=folder, capture_output=True, text=True, check=False)


def test_an_enrolled_layer_becomes_tests(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-v", "-p", "no:cacheprovider")
    assert done.returncode == 1
    for group in ("values", "gradients", "numerics", "layouts", "state"):
        assert f"test_stock::{group} PASSED" in done.stdout
    assert "test_shifted::values FAILED" in done.stdout
    assert "the output in training is wrong" in done.stdout
    assert "test_something_else PASSED" in done.stdout
    assert "Traceback" not in done.stdout


def test_one_group_can_be_chosen(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-k", "test_stock and values", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_plug_in_costs_a_session_nothing() -> None:
    code = (
        "import sys, normlab.check.pytest_plugin; "
        "print([m for m in ('torch', 'numpy', 'normlab.check.engine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("quick", [True])
def test_the_report_is_made_once(quick: bool) -> None:
    import torch

    from normlab.check import enrol

    enrolled = enrol(torch.nn.LayerNorm, quick=quick)
    assert enrolled.report is enrolled.report
    assert enrolled.report.ok
