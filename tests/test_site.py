"""The site: it builds without a dead link, a dead link fails, and every name of ours that a page mentions exists."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
# what moved is listed under its old names, too
MOVED = {ROOT / "CHANGELOG.md"}


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, of a copy of the project's pages; with --quiet mkdocs counts no warnings, so nothing would fail."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=source,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_it_builds_and_a_dead_link_fails(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"{module} builds the site: pip install 'normlab[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "normlab").symlink_to(ROOT / "normlab")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "api.html").stat().st_size > 50_000
    with (tmp_path / "docs" / "study.md").open("a") as page:
        page.write("\n[nowhere](no-such-page.md)\n")
    dead = build(tmp_path, tmp_path / "site")
    assert dead.returncode != 0
    assert "no-such-page.md" in dead.stdout + dead.stderr


def exists(name: str) -> bool:
    """Whether a dotted name can be reached: a module, or what a module or class holds."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


# normlab.distributed stood in the docs and in a message, and raised AttributeError
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_on_a_page_exists(page: Path) -> None:
    names = set(re.findall(r"\bnormlab(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))
    files = {name for name in names if name.endswith((".toml", ".egg", ".yaml"))}
    assert [name for name in sorted(names - files) if not exists(name)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert exists("normlab.layers.BatchNorm.forward")
    assert not exists("normlab.layers.NoSuchNorm")
    assert not exists("normlab.no_such_module")
