"""The programs in the docs run as they stand, and say what the docs say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks.mutants import MUTANTS
from normlab.check.lint import RULES
from normlab.check.probe import CHECKS

DOCS = Path(__file__).parents[2] / "docs"


def programs(name: str) -> list[tuple[str, str]]:
    """(heading, program) of every Python block of a page."""
    found, heading = [], ""
    for part in re.split(r"(?m)^(#+ .*)$", (DOCS / name).read_text()):
        if part.startswith("#"):
            heading = part.strip("# ")
        found += [(heading, code) for code in re.findall(r"```python\n(.*?)```", part, re.S)]
    return found


@pytest.mark.parametrize(("heading", "code"), programs("findings.md"), ids=[h for h, _ in programs("findings.md")])
@pytest.mark.filterwarnings("ignore")
def test_the_reproduction_of_a_finding_runs(heading: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    for package in ("keras", "flax", "onnx"):
        if f"import {package}" in code or f"from {package}" in code:
            pytest.importorskip(package, reason=f"{package} is not installed: its finding was not reproduced")
    if heading.startswith("torch") and not torch.__version__.startswith("2.13."):
        pytest.skip(f"found in torch 2.13, this is {torch.__version__}")
    assert "assert " in code
    exec(compile(code, f"<{heading}>", "exec"), {})


@pytest.mark.parametrize(("heading", "code"), programs("check.md"), ids=[h for h, _ in programs("check.md")])
def test_the_examples_run(heading: str, code: str) -> None:
    exec(compile(code, f"<{heading}>", "exec"), {})


def test_the_pages_name_every_rule_and_check() -> None:
    lint = (DOCS / "lint.md").read_text()
    assert [r.name for r in RULES if r.name not in lint] == []
    check = (DOCS / "check.md").read_text()
    assert [name for name in CHECKS if f"`{name}`" not in check] == []
    assert f"{len(MUTANTS)} bugs" in check
