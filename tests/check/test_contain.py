"""Hostile targets are contained, ended in time and reported."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from normlab.check import contain
from normlab.check.contain import check_contained
from normlab.errors import UsageError

HERE = Path(__file__).parent / "hostile.py"


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [
        ("Raises", "bad-answer", "never again"),
        ("RaisesWhenBuilt", "raises-OSError", "no such weights"),
        ("Exits", "bad-answer", "raised SystemExit: 5"),
        ("ExitsForGood", "ends-process", "exit code 7"),
        ("Crashes", "ends-process", "a crash"),
        ("Text", "bad-answer", "returned str; expected a tensor"),
        ("Nothing", "bad-answer", "returned NoneType; expected a tensor"),
        ("OtherShape", "bad-answer", "a norm keeps the shape"),
        ("Complicated", "bad-answer", "requires the argument 'depth'"),
    ],
)
def test_a_hostile_target_is_reported(name: str, cause: str, words: str) -> None:
    report = check_contained(f"{HERE}:{name}", "batch", quick=True)
    assert not report.ok
    assert report.bugs[0].cause == cause
    assert words in report.bugs[0].message


def test_an_exit_names_the_check_and_keeps_what_was_found_before() -> None:
    report = check_contained(f"{HERE}:ExitsForGood", "batch", quick=True)
    found = [(f.check, f.status) for f in report.findings]
    assert found[:3] == [("values.initial", "pass"), ("values.train", "pass"), ("values.eval", "pass")]
    assert found[-1] == ("layouts.empty", "bug")
    assert not report.ok, "what did not run is not right"
    assert "did not run" in report.text()


# a fixed limit of 4 s ended the load of a busy machine in place of the hang: here the clock stands until it hangs
def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging, ticks = tmp_path / "hangs", itertools.count()
    monkeypatch.setenv("HANGS_NOW", str(hanging))
    monkeypatch.setattr(contain, "_now", lambda: 3.0 * next(ticks) if hanging.exists() else 0.0)
    report = check_contained(f"{HERE}:Hangs", "batch", quick=True, limit=4)
    assert (report.bugs[0].check, report.bugs[0].cause) == ("layouts.empty", "hangs")
    assert "no answer within 4 s" in report.bugs[0].message


def test_what_the_target_prints_disturbs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    report = check_contained(f"{HERE}:Fine", "batch", quick=True)
    assert report.ok, report.text()
    assert report.form == "torch Module"
    assert "junk" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("torch.nn", "with a colon between the two"),
        ("no_such_package.layers:Norm", "there is no module 'no_such_package'"),
        ("missing.py:Norm", "there is no file missing.py"),
        (f"{HERE}:Norm", "has no 'Norm'; it has"),
        (f"{HERE}:number", "is a int; expected a layer class"),
        ("collections:OrderedDict", "a class without forward and backward"),
    ],
)
def test_a_wrong_target_is_a_usage_error(target: str, words: str) -> None:
    with pytest.raises(UsageError) as told:
        check_contained(target, None, quick=True)
    assert words in str(told.value)
