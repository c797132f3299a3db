"""The images of a study: limits, and what makes them others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from normlab.study.running.run import check_names
from normlab.study.source import identity, open_data
from normlab.study.spec import DataChoice, make_spec


def test_a_limited_split_is_the_same_random_subset_with_its_own_statistics() -> None:
    whole, limited = open_data(DataChoice("digits")), open_data(DataChoice("digits", limit_train=100, limit_eval=30))
    again = open_data(DataChoice("digits", limit_train=100, limit_eval=30))
    assert (len(limited.train), len(limited.val), len(limited.test)) == (100, 30, 30)
    assert np.array_equal(limited.train.images, again.train.images)
    assert limited.hash == again.hash != whole.hash
    assert limited.channel_mean == pytest.approx(limited.train.images.mean() / 255, rel=1e-5)
    assert limited.channel_std == pytest.approx(limited.train.images.std() / 255, rel=1e-5)
    known = {image.tobytes() for image in whole.train.images}
    assert all(image.tobytes() in known for image in limited.train.images)
    assert len(np.unique(limited.train.labels)) == 10


def test_a_limit_beyond_what_there_is_changes_nothing_but_the_name() -> None:
    assert len(open_data(DataChoice("digits", limit_train=10**6)).train) == len(open_data(DataChoice("digits")).train)


def test_code_of_ones_own_is_part_of_what_a_cell_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data(DataChoice("digits", limit_train=20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    source = tmp_path / "own_code_for_keys.py"
    source.write_text("def net(norm, num_classes, in_channels): ...\n")
    spec = make_spec({"models": "own_code_for_keys:net"})
    plugged = make_spec({"plugins": "own_code_for_keys"})
    check_names(spec)
    before = identity(dataset, spec)
    assert before != dataset.hash == identity(dataset, make_spec({}))
    assert identity(dataset, plugged) != dataset.hash
    source.write_text("def net(norm, num_classes, in_channels): return 1\n")
    assert identity(dataset, spec) != before
    sys.modules.pop("own_code_for_keys")
