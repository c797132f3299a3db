"""Importing normlab, and asking for help, loads none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numba", "scipy", "sklearn", "pandas", "altair", "PIL", "pyarrow")


@pytest.mark.parametrize("code", ["import normlab", "import normlab.cli", "import normlab; normlab.norm_names()"])
def test_import_is_light(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "normlab" in loaded
    assert not loaded.intersection(HEAVY)


def test_rare_layers_come_with_their_names() -> None:
    code = (
        "import sys; from normlab import layers; before = {*sys.modules}; "
        "assert layers.DyT.__module__ == 'normlab.layers.elementwise' not in before; "
        "assert all(hasattr(layers, name) for name in layers.__all__) and not hasattr(layers, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_is_light() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "normlab", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "compare" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded.intersection(HEAVY)


def test_public_names() -> None:
    import normlab

    for name in normlab.__all__:
        assert getattr(normlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        normlab.nothing  # noqa: B018
    assert {"make_norm", "layers", "data"} <= set(dir(normlab))
