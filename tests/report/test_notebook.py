"""Comparing in a notebook: one bar, and the notebook of the docs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from normlab.report.notebook import OneBar, console
from normlab.study.running.console import PlainLines
from normlab.study.running.jobs import Job
from normlab.study.spec import DataChoice
from tests.notebooks import run_notebook
from tests.study.conftest import make_cell

PAGE = Path(__file__).parents[2] / "docs" / "notebooks" / "which_norm.ipynb"


class Display:
    """As IPython's module: an output that is written anew."""

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.HTML = str

    def display(self, picture: str, display_id: bool) -> Any:
        self.outputs.append(picture)
        return SimpleNamespace(update=lambda newer: self.outputs.__setitem__(-1, newer))


def job(number: int) -> Job:
    return Job(number, f"k{number}", make_cell(norm="<b>", epochs=2), DataChoice("digits"), None)


def test_one_bar_says_what_is_left() -> None:
    display = Display()
    bar = OneBar(display)
    with bar:
        bar.data(0, 10, "decoding")
        bar.expect(4, 1)
        bar.started(job(7))
        bar.epoch(job(7), {"epoch": 1, "val_accuracy": 0.5})
        (shown,) = display.outputs
        assert 'max="4" value="1.500"' in shown
        assert "1 of 4 trainings, about 0 s left" in shown
        assert "&lt;b&gt;" in shown
        assert "0.500" in shown
        bar.ended(job(7), "diverged", "epoch 1")
        bar.notice("a & b")
        (shown,) = display.outputs
        assert 'value="2.000"' in shown
        assert "diverged (epoch 1)" in shown
        assert "a &amp; b" in shown
    assert "over" in display.outputs[0]
    bar.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "everything is kept, and the same call goes on" in display.outputs[0]


def test_elsewhere_it_is_the_command_lines() -> None:
    assert isinstance(console(), PlainLines)


def test_it_is_known_where_there_is_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Display()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for shell, kind in (
        (SimpleNamespace(kernel=object()), OneBar),
        (SimpleNamespace(), PlainLines),
        (None, PlainLines),
    ):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert isinstance(console(), kind)


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    shown = run_notebook(PAGE)
    assert "is called" in shown
    assert shown.count("<progress") == 1
    assert "4 of 4 trainings" in shown
