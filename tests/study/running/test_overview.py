"""A plan takes what a comparison takes, and says of its cells what the status says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from normlab.cli import main, study
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import LOCKS, Store
from normlab.study.running.driver import MOST_FAILURES
from normlab.study.running.overview import plan_lines, status_lines
from normlab.study.running.run import Options, run_study
from normlab.study.running.tuning import TUNABLE
from normlab.study.spec import make_spec
from tests.study.fakes import Scripted, Silent
from tests.study.running.test_tuning import trained

SMALL = {"norms": "bn,gn", "epochs": 2, "limit_train": 40, "limit_eval": 20, "batch_sizes": 8}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is timed."""
    monkeypatch.setattr("normlab.study.running.overview.estimate_seconds", lambda cells, *_: [60.0] * len(cells))


def ran(directory: Path, monkeypatch: pytest.MonkeyPatch, answer: Any = trained, **changes: Any) -> Any:
    """The spec of a study that has run in this directory, its cells trained by `answer`."""
    spec = make_spec({**SMALL, **changes})
    monkeypatch.setattr("normlab.study.running.run.make_executor", lambda *_: Scripted(answer))
    run_study(spec, directory, Options(), console=Silent())
    return spec


def test_plan_has_every_flag_of_compare() -> None:
    def flags(command: Any) -> set[str]:
        return set(inspect.signature(command).parameters)

    assert flags(study.compare) - flags(study.plan) == {"second"}


# A plan said "running" of a cell whose process had died, the status "interrupted".
def test_a_dead_cell_is_interrupted_in_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ran(tmp_path, monkeypatch)
    with Store(tmp_path) as store:
        store.forget([1, 2])
        store.begin_attempt(1, {})
    first, second, counted, *_ = plan_lines(spec, tmp_path, Options())
    assert first.startswith("interrupted")
    assert second.startswith("to do")
    assert counted == "2 cells, 0 done, 2 to do"
    assert any(line.startswith("interrupted") for line in status_lines(tmp_path))
    with CellLocks(tmp_path / LOCKS) as somebody:
        assert somebody.acquire(1)
        assert next(plan_lines(spec, tmp_path, Options())).startswith("running")
        assert any(line.startswith("running") for line in status_lines(tmp_path))


def test_what_a_comparison_would_leave_alone_is_not_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ran(tmp_path, monkeypatch)
    with Store(tmp_path) as store:
        store.forget([2])
        for _ in range(MOST_FAILURES):
            attempt = store.begin_attempt(2, {})
            assert attempt is not None
            store.end_attempt(attempt, 2, "failed")
    assert "2 cells, 1 done, 0 to do" in list(plan_lines(spec, tmp_path, Options()))
    assert "2 cells, 1 done, 1 to do" in list(plan_lines(spec, tmp_path, Options(retry_failed=True)))
    assert "2 cells, 0 done, 2 to do" in list(plan_lines(spec, tmp_path, Options(force=True)))


# A plan ignored --tune: it listed cells that never ran.
def test_trials_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = len(TUNABLE["lr"].grid)
    spec = make_spec({**SMALL, "tune": "lr", "seeds": 2})
    before = list(plan_lines(spec, tmp_path, Options()))
    assert f"{2 * grid} cells, 0 done, {2 * grid} to do" in before
    assert f"--tune lr: {2 * grid} trials at most, then 4 cells at the values that they find best" in before
    assert all("seed 2" in line for line in before[: 2 * grid])
    ran(tmp_path, monkeypatch, tune="lr", seeds=2)
    after = list(plan_lines(spec, tmp_path, Options()))
    assert f"{2 * grid + 4} cells, {2 * grid + 4} done, 0 to do" in after


def test_seeds_that_stop_when_sure_and_a_budget_are_said(tmp_path: Path) -> None:
    lines = list(plan_lines(make_spec(SMALL), tmp_path, Options(until_sure=True, budget=30.0, jobs=1, device="cpu")))
    assert "24 cells, 0 done, 24 to do" in lines
    assert "at most: with --until-sure seeds stop when the question is settled" in lines
    assert "of which --budget allows 30 seconds: what tells least is left out" in lines
    assert any(line.startswith("at least ") and line.endswith(", for 2 seeds of each") for line in lines)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "cuda:7"), "cuda:7"),
        (("--budget", "soon"), "--budget 'soon'"),
        (("--baseline", "bin"), "--baseline 'bin'"),
        (("--gpus", "1"), "--backend ray"),
        (("--backend", "slurm"), "slurm"),
        (("--jobs", "1000"), "1000"),
        (("--metric", "f2"), "--metric 'f2'"),  # this one and the next were planned, and refused by `compare`
        (("--log", "cloud"), "--log 'cloud'"),
    ],
)
def test_what_compare_refuses_plan_refuses(
    flags: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "digits", "--limit-train", "40", "--out", str(tmp_path), *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


# It was planned, and refused by `compare`.
def test_a_file_is_no_directory_for_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["plan", "digits", "--limit-train", "40", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "is a file; expected a directory" in capsys.readouterr().err
