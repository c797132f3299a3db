"""What reaches a terminal, and the notes on the data."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest

from normlab import report
from normlab.data import Dataset
from normlab.study.plain import escaped
from normlab.study.running.console import PlainLines
from normlab.study.running.run import Options, run_study
from normlab.study.spec import make_spec


def test_nothing_controls_the_terminal() -> None:
    stream = io.StringIO()
    PlainLines(stream).notice("a\x1b[2Jb\x07\x9b\u202e\udc80\r, ö ± 漢\nnext")
    assert stream.getvalue() == "a\\x1b[2Jb\\x07\\x9b\\u202e\\udc80\\r, ö ± 漢\nnext\n"
    assert escaped("plain, 95.5 ± 1.8 %") == "plain, 95.5 ± 1.8 %"


def test_notes_on_the_data_are_said_once_and_stay_with_the_study(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "3 files were ignored: <img src=x onerror=alert(1)>, a\x1b]0;b.txt"
    noted = dataclasses.replace(dataset, notes=(note, "all were resized"))
    monkeypatch.setattr("normlab.study.running.run.open_data", lambda *a, **k: noted)
    spec = make_spec({"norms": "bn", "models": "resnet8:width=4", "epochs": "1", "batch_sizes": "64"})
    stream = io.StringIO()
    results = run_study(spec, tmp_path, Options(inline=True), console=PlainLines(stream))
    assert results["environment"]["notes"] == [note, "all were resized"]
    assert stream.getvalue().count("files were ignored") == 1
    assert "\x1b" not in stream.getvalue()
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "3 files were ignored: &lt;img src=x" in page
    assert "; all were resized" in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
