"""docs/norms.md tells what the entries say, and its listings run.

`python -m tests.norms.test_docs` prints the table.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import normlab
from normlab.norms.family import NormEntry, describe
from normlab.norms.grid import Moments

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "norms.md"
BUILT_IN = normlab.norm_names()  # before any test registers its own


class Watched(Moments):
    """Moments that write down which poolings are read."""

    def __init__(self, read: list[str], pooled: str = "s") -> None:
        ones = np.ones((2, 8))
        super().__init__(lambda: (ones, ones), (2, 8), 3)
        self.read, self.pooled = read, pooled

    def pool(self, over: str, groups: int = 1, *, parts: int = 1) -> Watched:
        return Watched(self.read, f"{'g' if groups > 1 else 'p' if parts > 1 else over} {self.pooled}")

    def _numbers(self) -> tuple[Any, Any]:
        if self.pooled not in self.read:
            self.read.append(self.pooled)
        return super()._numbers()


def pools(entry: NormEntry) -> str:
    """What a norm takes statistics over, found by watching its grid function."""
    if entry.grid is None:
        return ""
    read: list[str] = []
    options = {k: v(8) if callable(v) else v for k, v in entry.options.items()}
    entry.grid(Watched(read), SimpleNamespace(eps=1.0, **dict.fromkeys(entry.parameters, np.ones((1, 1)))), **options)
    return "; ".join(read)


def table() -> str:
    rows = [f"| `{e.name}` | {e.title} | {pools(e)} | {e.formula} | {e.paper} |" for e in map(describe, BUILT_IN)]
    return "\n".join(["| norm | | statistics over | formula | paper |", "|---|---|---|---|---|", *rows])


def advice() -> str:
    """When to use each norm, as its entry says."""
    return "\n".join(f"- **`{e.name}`**: {e.when}" for e in map(describe, BUILT_IN) if e.when)


def listings(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def run(directory: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_table() -> None:
    assert table() in PAGE.read_text(), f"docs/norms.md should have the table\n{table()}"


def test_advice() -> None:
    assert advice() in PAGE.read_text(), f"docs/norms.md should have the list\n{advice()}"


def test_first_listing(tmp_path: Path) -> None:
    assert run(tmp_path, "-c", listings("python")[0]).strip() == str(BUILT_IN)


def test_own_norm_listings(tmp_path: Path) -> None:
    """The listings as they stand, their norms used by another process."""
    for name in ("mean-only", "tanh"):
        (listing,) = [text for text in listings("python") if f'@register_norm("{name}"' in text]
        (tmp_path / f"my_{name.partition('-')[0]}.py").write_text(listing)
    code = """
import torch, normlab, my_mean, my_tanh
x = torch.randn(2, 4, 5, 5, requires_grad=True)
for name in ("mean-only", "tanh"):
    y = normlab.make_norm(name, 4)(x)
    y.sum().backward()
    if name == "mean-only":
        torch.testing.assert_close(y, x - x.mean((0, 2, 3), keepdim=True))
print(*normlab.norm_names()[-2:])
"""
    assert run(tmp_path, "-c", code).split() == ["mean-only", "tanh"]


@pytest.mark.slow
def test_own_norm_on_the_command_line(tmp_path: Path) -> None:
    (command,) = [text.split() for text in listings("") if "--plugin" in text]
    (listing,) = [text for text in listings("python") if '@register_norm("mean-only"' in text]
    (tmp_path / "my_norms.py").write_text(listing)
    assert command[0] == "normlab"
    small = ("--model", "resnet8:width=4", "--epochs", "1", "--seeds", "1", "--out", "out")
    said = run(tmp_path, "-m", *command, *small)
    assert "mean-only" in said
    assert '"mean-only"' in (tmp_path / "out" / "results.json").read_text()


def test_listing_is_short() -> None:
    (listing,) = [text for text in listings("python") if '@register_norm("mean-only"' in text]
    assert len([line for line in listing.splitlines() if line.strip()]) <= 5


if __name__ == "__main__":
    print(table())
