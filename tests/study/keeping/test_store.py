"""The store: what goes in comes out, whoever writes at the same time, and older or newer files are told apart."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.errors import DataError
from normlab.study.keeping.store import FILE, MIGRATIONS, VERSION, Store, StoreBusy
from tests.study.conftest import make_cell

CELLS = [make_cell(seed=seed) for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store(tmp_path) as opened:
        opened.begin_study({}, {}, CELLS, "data")
        yield opened


def attempt(store: Store, cell: int) -> int:
    begun = store.begin_attempt(cell, {"cpu": "a"})
    assert begun is not None
    return begun


def test_a_cell_is_entered_once_whoever_asks_for_it(store: Store) -> None:
    assert store.begin_study({}, {}, list(reversed(CELLS)), "data") == [3, 2, 1]
    assert len(store.cells()) == 3
    assert store.begin_study({}, {}, CELLS[:1], "other data") == [4]
    assert store.cells([4])[0].cell == CELLS[0]


def test_numbers_that_are_not_finite_survive(store: Store) -> None:
    store.add_epoch(1, {"epoch": 1, "train_loss": math.nan, "val_loss": math.inf, "low": -math.inf})
    (record,) = store.epochs(1)
    assert math.isnan(record["train_loss"])
    assert record["val_loss"] == math.inf
    assert record["low"] == -math.inf


def test_an_epoch_is_recorded_once(store: Store) -> None:
    assert store.add_epoch(1, {"epoch": 1, "train_loss": 0.5})
    assert not store.add_epoch(1, {"epoch": 1, "train_loss": 0.7})
    assert store.epochs(1) == [{"epoch": 1, "train_loss": 0.5}]


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_a_finished_cell_is_not_begun_again(store: Store, status: str) -> None:
    store.end_attempt(attempt(store, 1), 1, status)
    assert store.begin_attempt(1, {}) is None


@pytest.mark.parametrize("status", ["failed", "interrupted", "paused"])
def test_any_other_cell_is(store: Store, status: str) -> None:
    store.end_attempt(attempt(store, 1), 1, status, reason="because", traceback="here")
    assert store.cells([1])[0].reason == "because"
    attempt(store, 1)
    assert store.cells([1])[0].status == "running"
    assert store.failures(1) == (status == "failed")


def test_an_attempt_that_never_ended_is_told_as_interrupted(store: Store) -> None:
    attempt(store, 1)
    attempt(store, 1)
    assert [a["status"] for a in store.attempts(1)] == ["interrupted", None]
    assert store.attempts(1)[0]["environment"] == {"cpu": "a"}


def test_forgetting_takes_a_cell_back_to_the_beginning(store: Store) -> None:
    store.add_epoch(1, {"epoch": 1})
    store.end_attempt(attempt(store, 1), 1, "done", outcome={"test": {"accuracy": 1.0}})
    store.forget([1])
    (cell,) = store.cells([1])
    assert (cell.status, cell.outcome, store.epochs(1)) == ("pending", {}, [])
    assert len(store.attempts(1)) == 1, "attempts stay on the books"


def test_reading_never_waits_for_a_writer(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normlab.study.keeping.store.BUSY_SECONDS", 0)  # to wait is an error
    writer = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE cells SET status = 'done'")
    with Store(tmp_path, readonly=True) as reader:
        assert {c.status for c in reader.cells()} == {"pending"}
    writer.execute("ROLLBACK")
    writer.close()


def test_a_store_that_stays_busy_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normlab.study.keeping.store.BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with Store(tmp_path) as second, pytest.raises(StoreBusy, match="busy") as caught:
        second.add_epoch(1, {"epoch": 1})
    assert caught.value.exit_code == 4
    writer.close()


def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute(f"PRAGMA user_version = {VERSION + 1}")
    raw.close()
    with pytest.raises(StoreBusy, match="newer") as caught:
        Store(tmp_path)
    assert caught.value.exit_code == 4


def test_an_older_store_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as old:
        old.begin_study({}, {}, CELLS, "data")
    monkeypatch.setattr(
        "normlab.study.keeping.store.MIGRATIONS",
        {**MIGRATIONS, VERSION + 1: "ALTER TABLE cells ADD COLUMN colour TEXT DEFAULT 'red';"},
    )
    monkeypatch.setattr("normlab.study.keeping.store.VERSION", VERSION + 1)
    with Store(tmp_path) as new:
        assert len(new.cells()) == 3
    raw = sqlite3.connect(tmp_path / FILE)
    assert raw.execute("SELECT DISTINCT colour FROM cells").fetchall() == [("red",)]
    assert raw.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
    raw.close()


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is a text, and not a short one at that" * 100)
    with pytest.raises(DataError, match="not a normlab store"):
        Store(tmp_path)


def test_a_directory_without_a_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no study"):
        Store(tmp_path, readonly=True)


WRITER = """
import json, sys
from pathlib import Path
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import Store

directory = Path(sys.argv[1])
claimed = []
with Store(directory) as store, CellLocks(directory / "study.lock") as locks:
    for stored in store.cells():
        if not locks.acquire(stored.id):
            continue
        attempt = store.begin_attempt(stored.id, {})
        if attempt is not None:
            claimed.append(stored.id)
            store.add_epoch(stored.id, {"epoch": 1})
            store.end_attempt(attempt, stored.id, "done")
        locks.release(stored.id)
print(json.dumps(claimed))
"""


def test_eight_writers_share_two_thousand_cells_and_claim_none_twice(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.begin_study({}, {}, [make_cell(seed=seed) for seed in range(2000)], "data")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    outputs = [writer.communicate(timeout=600) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers), b"".join(error for _, error in outputs).decode()
    claims = [json.loads(output) for output, _ in outputs]
    assert sorted(cell for of_writer in claims for cell in of_writer) == list(range(1, 2001))
    assert sum(bool(of_writer) for of_writer in claims) > 1, "only one writer came to anything"
    with Store(tmp_path, readonly=True) as store:
        assert all(c.status == "done" and c.attempts == 1 for c in store.cells())
