from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import normlab.data


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., normlab.data.Dataset]:
    """`normlab.data.load` with a cache of its own."""
    return partial(normlab.data.load, cache_dir=tmp_path / "the cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder
