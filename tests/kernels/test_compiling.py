"""Compiled code on disk belongs to the sources that are here, wherever Numba keeps it."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest

from normlab.kernels.cpu import planes
from normlab.kernels.layout import ones
from normlab.kernels.runtime.compiling import cache_folder, discard_stale
from normlab.kernels.runtime.job import COMBINE, DOT
from normlab.kernels.stages import forward


# Bug: with NUMBA_CACHE_DIR, or an installation that cannot be written, code of one folder alone was ever discarded.
@pytest.mark.parametrize("elsewhere", [True, False])
def test_stale_code_is_discarded_where_it_lies(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache") if elsewhere else "")
    for name in ("first", "second"):
        place = tmp_path / name
        place.mkdir()
        (place / "__init__.py").touch()
        source = place / "kernels.py"
        source.write_text("before")
        index = cache_folder(place) / "kernels.nbi"
        assert index.is_relative_to(tmp_path / "cache" if elsewhere else place)
        discard_stale(place, [source])
        index.touch()
        discard_stale(place, [source])
        assert index.exists(), "it is what was compiled of this source"
        source.write_text("after")
        discard_stale(place, [source])
        assert not index.exists()


# Bug: what sums and combines was compiled twice for float32 and float64, once for layers with an activation.
def test_an_activation_has_no_kernels_of_its_own_where_numbers_are_elements() -> None:
    found = []
    for act in (None, "relu"):
        x = ones(planes.MANY, 3, "float32")
        _, cache = forward("bn", x, {}, act=act)
        needs = planes._needs(cache.saved.plan, True, False)
        found.append((needs[DOT], needs[COMBINE]))
    assert found[0] == found[1]
