"""Kernels that came compiled are used where they fit, and only there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from normlab.kernels.runtime import needed, objects, sources
from normlab.kernels.runtime.needed import Need
from normlab.kernels.runtime.objects import CONTENTS, SETS, library_in

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the libraries")

FULL, MOST = SETS["x86-64-v4"], SETS["x86-64-v3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries, each with a function that returns which one it is of."""
    folder = tmp_path_factory.mktemp("objects")
    digests = {}
    for name in SETS:
        path = folder / f"{name}.so"
        code = f"long level(void) {{ return {name[-1]}; }}"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
        subprocess.run(command, input=code, text=True, check=True)
        digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    made_from = sources.digest(sources.sources_of(sources.KERNELS / "cpu"))
    (folder / CONTENTS).write_text(json.dumps({"sources": made_from, "libraries": digests}))
    return folder


def test_the_largest_set_that_the_processor_has(made: Path) -> None:
    assert library_in(made, {*FULL, "sse", "amx_tile"}).level() == 4
    assert library_in(made, MOST).level() == 3
    assert library_in(made, FULL - {"avx512vl"}).level() == 3
    for lacking in MOST:
        assert library_in(made, FULL - {lacking}) is None
    assert library_in(made, set()) is None, "another kind of processor, or another system"


def _truncated(folder: Path) -> None:
    path = folder / "x86-64-v3.so"
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(folder: Path) -> None:
    path = folder / "x86-64-v3.so"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _no_library(folder: Path) -> None:
    """Its digest is right, and it is none."""
    path, contents = folder / "x86-64-v3.so", json.loads((folder / CONTENTS).read_text())
    path.write_bytes(b"none")
    contents["libraries"]["x86-64-v3"] = hashlib.sha256(b"none").hexdigest()
    (folder / CONTENTS).write_text(json.dumps(contents))


def _of_other_sources(folder: Path) -> None:
    contents = json.loads((folder / CONTENTS).read_text())
    (folder / CONTENTS).write_text(json.dumps({**contents, "sources": "0" * 64}))


@pytest.mark.parametrize(
    "spoil",
    [
        _truncated,
        _flipped,
        _no_library,
        _of_other_sources,
        lambda folder: (folder / "x86-64-v3.so").unlink(),
        lambda folder: (folder / CONTENTS).unlink(),
        lambda folder: (folder / CONTENTS).write_text(""),
        lambda folder: (folder / CONTENTS).write_text("[]"),
        lambda folder: (folder / CONTENTS).write_bytes(b"\xff"),
        lambda folder: (folder / CONTENTS).write_text("{}"),
    ],
)
def test_nothing_is_loaded_of_what_is_damaged_or_stale(
    spoil: Callable[[Path], object], made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    shutil.copytree(made, folder)
    spoil(folder)
    assert library_in(folder, MOST) is None


def test_what_a_library_lacks_is_compiled(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_in(made, MOST)
    monkeypatch.setattr(objects, "_library", lambda: library)
    assert objects.find("level")
    assert objects.find("another") is None
    address = needed.address.__wrapped__  # without what it remembers
    assert address(Need("operator", "add", (3, 4))) == 7, "what the function returns that compiles it"
