"""The order of imports: `lint-imports` holds it (contracts in pyproject.toml), and it would notice a break."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# contract -> a module that must not import, and what it would import
TURNED = {
    "Imports point one way": ("norms/grid.py", "import normlab.kernels.layout"),
    "Inside a study": ("study/training/metrics.py", "import normlab.study.keeping.store"),
    "check is independent": ("check/report.py", "import normlab.layers"),
    "norms are not bound": ("norms/program.py", "import torch"),
    # imports inside functions and for type checkers count
    "No circle": (
        "kernels/layout.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from normlab.kernels import stages",
    ),
}


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package and its contracts, to be broken."""
    shutil.copytree(ROOT / "normlab", tmp_path / "normlab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow  # `make lint` sees to it
def test_the_order_holds(copied: Path) -> None:
    done = lint_imports(copied)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "contracts", [list(TURNED), *(pytest.param([name], marks=pytest.mark.slow) for name in TURNED)], ids=len
)
def test_an_import_turned_round_is_noticed(copied: Path, contracts: list[str]) -> None:
    for module, line in (TURNED[name] for name in contracts):
        path = copied / "normlab" / module
        path.write_text(path.read_text() + "\n\n" + line + "\n")
    done = lint_imports(copied)
    assert done.returncode == 1
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    for name in contracts:
        assert any(text.startswith(name) for text in broken), done.stdout


# the top of the package had grown to 31 entries, and nobody found anything
def test_the_top_of_the_package_stays_short() -> None:
    python_s_own = {"__init__.py", "__init__.pyi", "__main__.py", "__pycache__", "py.typed"}
    entries = {p.name for p in (ROOT / "normlab").iterdir() if not p.name.startswith((".", "_"))} - python_s_own
    assert len(entries) <= 14, sorted(entries)
