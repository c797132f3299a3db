"""Keras's own tests, over our layers, where Keras is installed."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.mark.slow
def test_what_keras_tests_of_its_norms_holds_for_ours(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("keras", reason="its wheel ships the tests")
    from benchmarks import keras_tests

    keras_tests.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "_test.py: " in line]
    assert len(lines) == len(keras_tests.FILES)
    assert all(int(line[1]) == int(line[3]) > 0 for line in lines)
