"""Hostile targets are contained, ended in time and reported."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normlab.check import contain, descendants
from normlab.check.contain import check_contained
from normlab.check.probe import CHECKS
from normlab.errors import UsageError
from normlab.kernels.runtime.system import COMPILE_ALONE

HERE = Path(__file__).parent / "hostile.py"


# Bug: where normlab's kernels had to be compiled for the timing beside a layer, the layer was said to leave a process.
def test_normlab_compiles_alone_beside_a_target() -> None:
    assert COMPILE_ALONE.items() <= contain._settings(quick=False).items()


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


# the checks that run where the target is ended in a traceback of ours
def test_a_target_that_fails_only_after_a_while_is_reported() -> None:
    report = check_contained(f"{HERE}:RaisesWhenBuiltLater", quick=True)
    assert report.complete
    assert report.mathematics_ok
    assert {f.cause for f in report.bugs} == {"raises-OSError"}
    assert {f.part for f in report.bugs} == {"engineering", "numerics"}


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


# on a busy machine a right layer was said to hang, and its mathematics to be wrong
def test_a_process_that_does_not_come_to_the_processor_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(contain, "_now", lambda: 0.1 * next(ticks))  # seconds that it is kept waiting
    monkeypatch.setattr(contain, "PATIENCE", 10_000)
    monkeypatch.setattr(contain.Family, "use_of_processor", lambda self: (True, 0.0))
    assert not check_contained("torch.nn:LayerNorm", "layer", quick=True, limit=1).bugs


# the time of a compiler that the layer's process waits for did not count, and a right layer was said to hang
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_waits_for_another_of_its_session_would_run() -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
    family = descendants.Family(process)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (len(family._members()) == 2 and family.use_of_processor()[0]):
            time.sleep(0.05)
        would_run, used = family.use_of_processor()
        assert would_run
        assert used > 0
    finally:
        family.end()


# a traceback of ours; and 300 MB of it were 632 MB of memory
def test_standard_error_may_be_of_any_size_and_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISY_MEGABYTES", "300")
    kept: list[int] = []
    ended = contain.Line._describe_end

    def watching(self: contain.Line) -> contain.Gone:
        gone = ended(self)
        kept.append(len(self._errors))
        return gone

    monkeypatch.setattr(contain.Line, "_describe_end", watching)
    report = check_contained(f"{HERE}:CrashesNoisily", "batch", quick=True)
    assert report.bugs[-1].cause == "ends-process"
    assert "exit code 9; its last words: \ufffd\ufffd the end" in report.bugs[-1].message
    assert kept[0] <= contain.LAST_WORDS


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# thirty of thirty outlived the check
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the report says that they are not ended")
def test_children_in_sessions_of_their_own_are_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("CHILDREN", str(pids))
    report = check_contained(f"{HERE}:LeavesChildren", "batch", quick=True)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert not any(map(_alive, started))
    said = next(f for f in report.findings if f.check == "target.children")
    assert said.cause == "leaves-processes"
    assert said in report.of_part("engineering")


def test_where_children_cannot_be_watched_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descendants.sys, "platform", "darwin")
    said = descendants.note()
    assert said is not None
    assert (said.check, said.status, said.part) == ("target.children", "note", "engineering")
    assert "is not ended" in said.message


# "conforms: 1 checks passed": the target wrote the report itself
def test_a_forged_report_is_none() -> None:
    report = check_contained(f"{HERE}:Forges", "batch", quick=True)
    assert not report.ok
    assert [f.cause for f in report.bugs] in (["ends-process"], ["bad-answer"])
    assert not [f for f in report.findings if f.status == "pass"]


def test_the_mathematics_are_judged_outside_the_target_s_process() -> None:
    report = check_contained(f"{HERE}:ForgesFindings", "batch", quick=True)
    assert not report.mathematics_ok
    assert "values.train" in [f.check for f in report.bugs]


def test_what_the_target_prints_disturbs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    report = check_contained(f"{HERE}:Fine", "batch", quick=True)
    run = [f.check for f in report.findings if not f.check.startswith("target.")]
    assert sorted(run) == sorted(name for name, (_, slow) in CHECKS.items() if not slow), "each is accounted for"
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
