"""One byte of a store changed: it is noticed, or it changes nothing; and what is whole is saved."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from normlab.cli import main
from normlab.errors import DataError
from normlab.study.keeping.records import gathered
from normlab.study.keeping.store import FILE, SEALED, Store, StoreBusy
from normlab.study.keeping.verify import SAVED, verify
from tests.study.conftest import make_cell

FACTS = {"data_hash": "data", "test_images": 100}
TEST = {"accuracy": 0.5, "loss": 1.0, "micro_f1": 0.5, "macro_f1": 0.5}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three cells of two epochs."""
    directory = tmp_path_factory.mktemp("written")
    with Store(directory) as store:
        for cell in store.begin_study({"norms": ["bn"]}, FACTS, [make_cell(seed=s) for s in range(3)], "data"):
            attempt = store.begin_attempt(cell, {"cpu": "a"})
            assert attempt is not None
            for epoch in (1, 2):
                store.add_epoch(cell, {"epoch": epoch, "val_accuracy": 0.25 * epoch, "pad": "x" * 200})
            store.end_attempt(attempt, cell, "done", outcome={"test": TEST, "parameters": 10})
    with closing(sqlite3.connect(directory / FILE)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return directory


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def read(directory: Path) -> Any:
    """Everything that a study's records say."""
    with Store(directory, readonly=True) as store:
        return gathered(store), [store.attempts(stored.id) for stored in store.cells()]


# Of 299 bytes changed one at a time, 77 were read without complaint, and others raised raw errors of SQLite.
def test_a_changed_byte_is_noticed_or_changes_nothing(written: Path, copy: Path) -> None:
    expected = read(written)
    content = (written / FILE).read_bytes()
    used = [i for i, byte in enumerate(content) if byte]
    noticed = 0
    for position in random.Random(13).sample(used, 250):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (copy / FILE).write_bytes(changed)
        for leftover in copy.glob(f"{FILE}-*"):
            leftover.unlink()
        try:
            assert read(copy) == expected, f"byte {position}"
        except (DataError, StoreBusy):
            noticed += 1
    assert noticed > 150


@pytest.mark.parametrize("table", SEALED)
def test_a_changed_row_is_noticed_named_and_left_out(
    table: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = {"cells": "reason", "epochs": "record", "attempts": "host", "studies": "facts"}[table]
    with closing(sqlite3.connect(copy / FILE)) as raw, raw:
        raw.execute(f"UPDATE {table} SET {column} = '{{}}' WHERE rowid = 1" if table != "epochs" else
                    "UPDATE epochs SET record = '{\"epoch\": 2}' WHERE cell = 1 AND epoch = 2")  # fmt: skip
    with pytest.raises(DataError, match=r"damaged.*--verify"):
        read(copy)
    with pytest.raises(SystemExit) as ended:
        main(["status", str(copy), "--verify"])
    said = capsys.readouterr()
    assert ended.value.code == 6
    assert f"{table}: " in said.out
    assert "saved: " in said.out
    with Store(copy / SAVED, readonly=True) as saved:
        assert len(saved.cells()) == (2 if table == "cells" else 3)
        assert [stored.status for stored in saved.cells()].count("done") == (2 if table in ("cells", "epochs") else 3)
        assert len(saved.studies()) == (0 if table == "studies" else 1)


def test_an_environment_that_is_lost_costs_no_cell(copy: Path) -> None:
    with closing(sqlite3.connect(copy / FILE)) as raw, raw:
        raw.execute("UPDATE environments SET facts = '{}'")
    with pytest.raises(DataError, match="environment of an attempt"):
        read(copy)
    with pytest.raises(DataError):
        list(verify(copy))
    assert [cell["status"] for cell in read(copy / SAVED)[0]["cells"]] == ["done"] * 3


def test_a_store_whose_middle_is_gone_is_saved_around_it(copy: Path) -> None:
    content = bytearray((copy / FILE).read_bytes())
    pages = len(content) // 4096
    with closing(sqlite3.connect(copy / FILE)) as raw:
        root = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'attempts'").fetchone()[0]
    assert root <= pages
    content[(root - 1) * 4096 : root * 4096] = bytes(4096)
    (copy / FILE).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read(copy)
    with pytest.raises(DataError):
        list(verify(copy))
    with Store(copy / SAVED, readonly=True) as saved:
        assert len(gathered(saved)["cells"]) == 3


def test_a_whole_study_is_said_to_be(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", str(copy), "--verify"])
    assert ended.value.code == 0
    assert f"{copy / FILE}: whole" in capsys.readouterr().out
    assert not (copy / SAVED).exists()


def test_a_damaged_checkpoint_is_found(copy: Path) -> None:
    path = copy / "checkpoints" / "key" / "final.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    checks = verify(copy)
    lines = [next(checks) for _ in range(3)]
    with pytest.raises(DataError, match="damaged"):
        next(checks)
    assert lines[1].startswith(f"{path}: damaged")
    assert lines[-1].endswith("0 of 1 checkpoints are whole")


# Of an older store, whose rows have no digests, nothing was saved, and the user told to put that in its place.
def test_what_is_whole_of_an_older_store_is_saved(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as raw:
        raw.executescript(Path(__file__).with_name("older_store.sql").read_text(encoding="utf-8"))
        root = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'attempts'").fetchone()[0]
    content = bytearray((tmp_path / FILE).read_bytes())
    content[(root - 1) * 4096 : root * 4096] = bytes(4096)
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError):
        list(verify(tmp_path))
    with Store(tmp_path / SAVED, readonly=True) as saved:
        assert [len(records) for records in map(saved.epochs, (1, 2))] == [2, 2]
        assert len(gathered(saved)["cells"]) == 2
