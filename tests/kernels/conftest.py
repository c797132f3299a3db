"""The C++ part of the CPU's backend: not built, built, and in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import normlab
from normlab.kernels import registry
from normlab.kernels.native import building


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has been built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    _forget()
    yield
    monkeypatch.undo()
    _forget()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The C++ part is there: that of the environment, or one that is built now."""
    with pytest.MonkeyPatch.context() as patch:
        if building.built() is None:
            if shutil.which("ninja") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
                pytest.skip("a C++ compiler or ninja is missing")
            patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "extensions"))
            building.build()  # for the first file of tests that asks
        yield
    _forget()


@pytest.fixture
def native(built: None) -> Iterator[None]:
    """Layers are called through C++."""
    with normlab.use_backend("native_cpu"):
        yield


def _forget() -> None:
    building.built.cache_clear()
    building.extension.cache_clear()
    registry.forget_choices()
