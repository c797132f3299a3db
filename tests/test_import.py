"""Importing normlab, and asking for help, loads none of the heavy libraries."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "numba", "scipy", "sklearn", "pandas", "altair", "PIL", "pyarrow")


@pytest.mark.parametrize("code", ["import normlab", "import normlab.cli", "import normlab; normlab.norm_names()"])
def test_import_is_light(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "normlab" in loaded
    assert not loaded.intersection(HEAVY)


def test_help_is_light(capsys: pytest.CaptureFixture) -> None:
    """The median of five is printed, and held to a bound that only another library would break."""
    command = [sys.executable, "-X", "importtime", "-m", "normlab", "--help"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\nnormlab --help: median of 5: {statistics.median(seconds):.2f} s (with import timing on)")
    assert "compare" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded.intersection(HEAVY)
    assert statistics.median(seconds) < 3


def test_public_names() -> None:
    import normlab

    for name in normlab.__all__:
        assert getattr(normlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        normlab.nothing  # noqa: B018
    assert {"make_norm", "layers", "data"} <= set(dir(normlab))
