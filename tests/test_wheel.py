"""The wheel: what is in it, that it is one version, what type checkers read in it, and that the core needs no extra."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_installs import CORE_WORKS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install 'normlab[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("normlab-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents, as pip lays them out, and the kernels that are compiled here already."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for source in (ROOT / "normlab" / "kernels").rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(source, target)  # with its time, by which Numba recognizes it
    return folder


def run(installed: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that finds normlab in the folder, and not in this repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "MYPYPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_what_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {
        "normlab",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    tracked = subprocess.run(["git", "ls-files", "normlab"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= names, "every file of the package is in the wheel"
    for needed in (
        "py.typed",
        "__init__.pyi",
        "data/digits.npz",
        "report/templates/report.html",
        "reproduce/page.html",
    ):
        assert f"normlab/{needed}" in names
    assert not [name for name in names if re.search(r"\.(py[co]|nb[ci]|so)$|__pycache__|tests/|benchmarks/", name)]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_one_version_everywhere(wheel: Path, installed: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"], "it is read from normlab/__init__.py"
    (metadata,) = installed.glob("*.dist-info/METADATA")
    version = re.search(r"^Version: (.+)$", metadata.read_text("utf-8"), re.MULTILINE)[1]  # type: ignore[index]
    assert wheel.name == f"normlab-{version}-py3-none-any.whl"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    done = run(installed, tmp_path, "-c", "import normlab; print(normlab.__version__, normlab.__file__)")
    assert done.stdout.split() == [version, str(installed / "normlab" / "__init__.py")], done.stderr


SNIPPET = """
import torch
from torch import Tensor, nn

import normlab
from normlab import Affine, Moments, register_norm
from normlab.errors import UsageError
from normlab.layers import BatchNorm, swap_norms


def improve(model: nn.Module, x: Tensor) -> Tensor:
    try:
        better = swap_norms(model)
    except UsageError as error:
        raise SystemExit(error.exit_code) from error
    y: Tensor = better(x)
    return y


layer: BatchNorm = BatchNorm(8, momentum=0.1)
names: tuple[str, ...] = normlab.norm_names()
reveal_type(normlab.make_norm("bn", 8))
wrong: int = normlab.norm_names()
normlab.no_such_name
"""


def test_a_type_checker_reads_it(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy reads the types: pip install 'normlab[test]'")
    (tmp_path / "user.py").write_text(SNIPPET)
    options = ("--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary")
    said = run(installed, tmp_path, "-m", "mypy", *options, "user.py").stdout.splitlines()
    line = SNIPPET.splitlines().index("wrong: int = normlab.norm_names()") + 1
    assert [text.split(":")[1:3] for text in said] == [
        [str(line - 1), " note"], [str(line), " error"], [str(line + 1), " error"]
    ], said  # fmt: skip
    assert "Module" in said[0] or "Norm" in said[0], "a layer is not of type Any"
    assert "no_such_name" in said[2]


@pytest.fixture(scope="session")
def alone(wheel: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment: the wheel without its dependencies, beside torch, NumPy, Numba and theirs."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    found = subprocess.run([str(python), "-c", WHERE], check=True, capture_output=True, text=True).stdout.strip()
    shutil.copytree(installed / "normlab" / "kernels", Path(found) / "normlab" / "kernels", dirs_exist_ok=True)
    for source in core_files():
        (Path(found) / source.name).symlink_to(source)
    return python


WHERE = "import sysconfig; print(sysconfig.get_path('platlib'))"


def core_files() -> set[Path]:
    """What pip installs for torch, NumPy and Numba, as far as it is there: files and folders of site-packages."""
    left, seen = {"torch", "numpy", "numba"}, set()
    found: set[Path] = set()
    while left:
        name = left.pop()
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.distribution(name)
            root = Path(str(package.locate_file("")))
            found |= {
                root / file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")
            }
            needed = (Requirement(text) for text in package.requires or ())
            left |= {r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})} - seen
    return found


def test_the_core_of_it_needs_no_extra(alone: Path, tmp_path: Path) -> None:
    """Every layer runs, and a model's norms are swapped, where nothing but torch, NumPy and Numba is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(alone), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run("-c", "import scipy").returncode != 0, "it is clean"
    done = run("-c", CORE_WORKS)
    assert done.stdout == "works\n", done.stderr
    said = run("-m", "normlab")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.count("\n") == 1
    assert "pip install 'normlab[study]'" in said.stderr
