"""Failures are states with reasons: the study goes on, and what is wrong is told in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normlab.data import Dataset
from normlab.errors import DataError
from normlab.study.axes import Cell
from normlab.study.keeping import store
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import Store
from normlab.study.running import jobs
from normlab.study.running.driver import MOST_FAILURES, MOST_LOSSES, Driver
from normlab.study.running.inline import InlineExecutor
from normlab.study.running.jobs import Event, Job, failure, run_job
from normlab.study.spec import DataChoice
from tests.study.conftest import make_cell
from tests.study.fakes import Scripted, Silent
from tests.study.processes import HANGS, SMALL, children, go_on, held, kill, progress, run, start, wait_until

ONE_EPOCH = ("--epochs", "1", "--lr", "0.01", "--threads", "1", "--jobs", "1")


def drive(directory: Path, cells: list[Cell], executor: Any, **options: Any) -> tuple[Driver, Silent]:
    """A driver over these cells, run to its end."""
    listener = Silent()
    with Store(directory) as opened, CellLocks(directory / store.LOCKS) as locks:
        ids = opened.begin_study({}, {}, cells, "data")
        driver = Driver(
            opened,
            locks,
            executor,
            lambda c: Job(c.id, c.key, c.cell, DataChoice("digits"), str(directory / c.key)),
            listener,
            **options,
        )
        driver.run(ids)
    return driver, listener


def states(directory: Path) -> list[str]:
    with Store(directory, readonly=True) as opened:
        return [c.status for c in opened.cells()]


DONE: Event = {"event": "end", "status": "done", "outcome": {}}
FAILED: Event = {"event": "end", "status": "failed", "reason": "because", "traceback": "Traceback ..."}


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    cells = [make_cell(seed=seed) for seed in range(3)]
    drive(tmp_path, cells, Scripted(lambda job: [FAILED if job.cell.seed == 1 else DONE]))
    assert states(tmp_path) == ["done", "failed", "done"]
    with Store(tmp_path, readonly=True) as opened:
        assert opened.cells()[1].reason == "because"
        assert opened.cells()[1].traceback == "Traceback ..."


def test_unless_asked_to(tmp_path: Path) -> None:
    cells = [make_cell(seed=seed) for seed in range(3)]
    drive(tmp_path, cells, Scripted(lambda job: [FAILED]), fail_fast=True)
    assert states(tmp_path) == ["failed", "pending", "pending"]


def test_a_failed_cell_counts_as_not_done_but_is_not_tried_for_ever(tmp_path: Path) -> None:
    for _ in range(MOST_FAILURES + 2):
        executor = Scripted(lambda job: [FAILED])
        drive(tmp_path, [make_cell()], executor)
    assert executor.jobs == [], "left alone after so many failures"
    with Store(tmp_path, readonly=True) as opened:
        assert len(opened.attempts(1)) == MOST_FAILURES
    drive(tmp_path, [make_cell()], Scripted(lambda job: [DONE]), retry_failed=True)
    assert states(tmp_path) == ["done"]


def test_a_cell_that_keeps_killing_its_worker_fails(tmp_path: Path) -> None:
    executor = Scripted(lambda job: [{"event": "lost", "reason": "its worker was killed by SIGKILL"}])
    _, listener = drive(tmp_path, [make_cell()], executor)
    assert executor.jobs == [1] * MOST_LOSSES
    assert states(tmp_path) == ["failed"]
    assert len(listener.notices) == MOST_LOSSES - 1


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    cells = [make_cell(seed=seed) for seed in range(2)]
    with pytest.raises(DataError, match="no space") as caught:
        drive(tmp_path, cells, Scripted(lambda job: [{"event": "disk", "reason": "no space left"}]))
    assert caught.value.exit_code == 6
    drive(tmp_path, cells, Scripted(lambda job: [DONE]))
    assert states(tmp_path) == ["done", "done"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory at batch size 32"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory at batch size 32"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory at batch size 32"),
        (DataError("the folder is empty"), "the folder is empty"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_reasons_are_words(error: Exception, reason: str) -> None:
    event = failure(make_cell(), error)
    assert event["status"] == "failed"
    assert event["reason"] == reason
    assert type(error).__name__ in event["traceback"]


def test_a_disk_without_space_is_not_a_failure_of_the_cell(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("normlab.errors.files.os.fsync", full)
    heard: list[Event] = []
    run_job(Job(1, "k", make_cell(), DataChoice("x"), str(tmp_path / "c")), dataset, heard.append)
    assert [e["event"] for e in heard] == ["disk"]


def test_a_clock_set_back_changes_nothing(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cell(epochs=3)
    job_until: dict[str, int | None] = {"until": 1}
    original = jobs.run_job

    def interrupted(job: Job, *arguments: Any) -> None:
        original(Job(**{**vars(job), "until": job_until["until"]}), *arguments)

    monkeypatch.setattr("normlab.study.running.inline.run_job", interrupted)
    monkeypatch.setattr(store, "_now", lambda: "2030-01-02T00:00:00+00:00")
    drive(tmp_path, [cell], InlineExecutor(dataset))
    assert states(tmp_path) == ["paused"]
    job_until["until"] = None
    monkeypatch.setattr(store, "_now", lambda: "2030-01-01T00:00:00+00:00")
    monkeypatch.setattr("time.time", lambda: 0.0)
    drive(tmp_path, [cell], InlineExecutor(dataset))
    assert states(tmp_path) == ["done"]
    with Store(tmp_path, readonly=True) as opened:
        assert [r["epoch"] for r in opened.epochs(1)] == [1, 2, 3]
        assert [a["status"] for a in opened.attempts(1)] == ["paused", "done"]


def test_a_cell_that_cannot_be_trained_fails_with_its_traceback_and_exit_code_1(tmp_path: Path) -> None:
    # three groups do not divide four channels
    code, said = run("--norms", "gn:groups=3,none", *ONE_EPOCH, directory=tmp_path / "study")
    assert code == 1
    assert "gn:groups=3" in said
    assert "divi" in said
    with Store(tmp_path / "study", readonly=True) as opened:
        failed, done = opened.cells()
    assert (failed.status, done.status) == ("failed", "done")
    assert failed.traceback is not None
    assert "Traceback" in failed.traceback


def test_a_killed_worker_costs_its_own_cell_only(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    flags = ("--norms", "bn,none", "--epochs", "3", "--lr", "0.01", "--jobs", "2", "--threads", "1")
    driver = start(*flags, *held(tmp_path), directory=directory)
    wait_until(lambda: list(progress(directory).values()) == [1, 1])
    kill(children(driver.pid)[0])
    go_on(tmp_path)
    assert driver.wait(HANGS) == 0
    with Store(directory, readonly=True) as opened:
        cells = opened.cells()
        assert [[r["epoch"] for r in opened.epochs(c.id)] for c in cells] == [[1, 2, 3]] * 2
        assert sorted(len(opened.attempts(c.id)) for c in cells) == [1, 2]
    assert "SIGKILL" in (tmp_path / "study.log").read_text()


FILL = """
mount -t tmpfs -o size=2m none "$1" || exit 99
shift
directory=$1; shift
"$@" --out "$directory/study"
code=$?
cp "$directory"/study/study.db* "$directory/.." 2>/dev/null
exit $code
"""


def test_two_megabytes_fill_up_and_the_store_still_opens(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [
        "unshare", "-rm", "sh", "-c", FILL, "sh", str(disk), str(disk),
        sys.executable, "-m", "normlab", "compare", *SMALL, "--model", "resnet14",
        "--norms", "bn,gn", "--seeds", "3", "--epochs", "3", "--jobs", "1", "--threads", "1", "--no-report",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) here, to mount a small disk with")
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr
    with Store(tmp_path, readonly=True) as opened:
        cells = opened.cells()
    assert len(cells) == 6
    assert {c.status for c in cells} <= {"pending", "running", "done"}
