"""What earlier versions wrote: stores open, keys are the same, trainings go on from their checkpoints."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from normlab.data import Dataset
from normlab.study.axes import AXES, Cell
from normlab.study.keeping.checkpoint import CheckpointDirectory, decode, encode
from normlab.study.keeping.records import collect
from normlab.study.keeping.store import FILE, VERSION, Store, StoreBusy
from normlab.study.running.overview import status_lines
from normlab.study.training.cell import Training, train_cell
from tests.study.conftest import make_cell

WRITTEN = Path(__file__).with_name("older_store.sql")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / FILE)) as raw:
        raw.executescript(WRITTEN.read_text(encoding="utf-8"))
    return tmp_path


def test_the_keys_of_cells_are_what_they_always_were() -> None:
    cell = Cell(
        norm="bn", model="resnet14", seed=0, epochs=10, batch_size=128, optimizer="sgd", lr=0.1,
        schedule="step:75%,95%", momentum=0.9, weight_decay=1e-4, dropout=0.0, augment="crop,flip",
    )  # fmt: skip
    assert cell.key("data") == "4da41b8e51d7519f761f"
    assert replace(cell, precision="bf16", compiled=True).key("data") == "7ce4c5998c0737e3f598"
    assert replace(cell, label_smoothing=0.1).key("data") != cell.key("data")


def test_an_older_store_is_read_as_it_is(older: Path) -> None:
    before = (older / FILE).read_bytes()
    assert next(status_lines(older)).endswith("2 cells: 2 done")
    with Store(older, readonly=True) as store:
        results = collect(store)
    assert [cell["label_smoothing"] for cell in results["cells"]] == [0.0, 0.0]
    assert [cell["test"]["accuracy"] for cell in results["cells"]] == [0.1875, 0.25]
    assert (older / FILE).read_bytes() == before


def test_an_older_store_goes_on(older: Path) -> None:
    with Store(older) as store:
        cells = [stored.cell for stored in store.cells()]
        study = store.study() or pytest.fail("the study is there")
        again = store.begin_study(study.spec, study.facts, cells, study.facts["data_hash"])
        assert again == study.cells, "the same cells, none of them new"
    with closing(sqlite3.connect(older / FILE)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_an_axis_raises_the_version_of_the_store() -> None:
    assert max(axis.since for axis in AXES) <= VERSION


def test_a_cell_with_an_axis_of_a_newer_version_is_exit_code_4(older: Path) -> None:
    """It was a TypeError, reported as a bug."""
    with closing(sqlite3.connect(older / FILE)) as raw:
        (config,) = raw.execute("SELECT config FROM cells WHERE id = 1").fetchone()
        raw.execute("UPDATE cells SET config = ?", (json.dumps({**json.loads(config), "no_such_axis_yet": 0.2}),))
        raw.commit()
    with Store(older, readonly=True) as store, pytest.raises(StoreBusy, match="no_such_axis_yet") as caught:
        collect(store)
    assert caught.value.exit_code == 4


def test_a_training_goes_on_from_a_checkpoint_that_is_older_than_an_axis(dataset: Dataset, tmp_path: Path) -> None:
    cell, heard = make_cell(norm="none"), list[str]()
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, heard.append), until=1)
    (path,) = tmp_path.iterdir()
    tensors, facts = decode(path.read_bytes())
    later = {field.name for field in fields(Cell) if field.metadata["axis"].since > 1}
    before: dict[str, Any] = {name: value for name, value in facts["cell"].items() if name not in later}
    path.write_bytes(encode(tensors, {**facts, "cell": before}))
    training = Training(cell, dataset)
    CheckpointDirectory(tmp_path, heard.append).restore(training)
    assert (len(training.records), heard) == (1, [])
    other = Training(replace(cell, label_smoothing=0.1), dataset)
    CheckpointDirectory(tmp_path, heard.append).restore(other)
    assert len(other.records) == 0
    assert "another training" in heard[0]
