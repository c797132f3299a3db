"""Checkpoints: taking up again is bit-identical, damage is noticed, and a full disk leaves what was there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normlab.data import Dataset
from normlab.study.keeping.checkpoint import FINAL, CheckpointDirectory, Damaged, decode, encode, read_state
from normlab.study.keeping.storage import LocalDirectory, open_storage
from normlab.study.training.cell import Training, train_cell
from tests.study.conftest import make_cell


class Cut(Exception):
    """The power goes."""


class CutAfter(CheckpointDirectory):
    """Keeps a state after every `every` steps too, and loses power after `last` states."""

    def __init__(self, directory: Path, last: int, every: int = 3) -> None:
        super().__init__(directory, notice=lambda text: None)
        self.last, self.every_steps, self.steps, self.kept = last, every, 0, 0

    def due(self) -> bool:
        self.steps += 1
        return self.steps % self.every_steps == 0

    def keep(self, training: Training) -> None:
        super().keep(training)
        self.kept += 1
        if self.kept == self.last:
            raise Cut


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return read_state(directory / FINAL)[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_a_training_cut_anywhere_ends_as_if_it_had_not_been(dataset: Dataset, tmp_path: Path, optimizer: str) -> None:
    cell = make_cell(
        norm="bin", optimizer=optimizer, lr=1e-2, augment="crop,flip", dropout=0.2, schedule="cosine", epochs=3
    )
    whole = train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path / "whole", print))
    cuts = 0
    while True:
        heard: list[dict[str, Any]] = []
        try:
            outcome = train_cell(cell, dataset, on_epoch=heard.append, checkpoints=CutAfter(tmp_path / "cut", last=1))
            break
        except Cut:
            cuts += 1
    assert cuts >= 3, "it was not cut often enough to show anything"
    assert [r["epoch"] for r in heard] == [1, 2, 3], "a training taken up again replays its past"
    assert outcome.test == whole.test
    for a, b in zip(outcome.epochs, whole.epochs, strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}
    expected = weights(tmp_path / "whole")
    assert expected
    for name, found in weights(tmp_path / "cut").items():
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_the_optimizer_keeps_lies_as_it_lay(dataset: Dataset, tmp_path: Path, optimizer: str) -> None:
    # in another order of memory, the last bit of a sum may be another
    cell = make_cell(optimizer=optimizer, model="resnet8:width=16")
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, print), until=1)
    training = Training(cell, dataset)
    CheckpointDirectory(tmp_path, print).restore(training)
    compared = 0
    for parameter in training.model.parameters():
        for kept in training.optimizer.state[parameter].values():
            if isinstance(kept, torch.Tensor) and kept.shape == parameter.shape:
                assert kept.stride() == parameter.stride()
                compared += not parameter.is_contiguous()
    assert compared > 0


def test_a_finished_training_is_not_trained_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = CheckpointDirectory(tmp_path, print)
    first = train_cell(make_cell(), dataset, checkpoints=checkpoints)
    monkeypatch.setattr(Training, "step", None)
    second = train_cell(make_cell(), dataset, checkpoints=checkpoints)
    assert second == first
    assert [p.name for p in tmp_path.iterdir()] == [FINAL]


def test_two_states_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    train_cell(make_cell(epochs=4), dataset, checkpoints=CheckpointDirectory(tmp_path, print), until=3)
    assert sorted(p.name[:6] for p in tmp_path.iterdir()) == ["000002", "000003"]


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "another file", "another training"])
def test_a_damaged_state_is_told_and_the_one_before_taken(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    cell = make_cell(epochs=4)
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, print), until=3)
    latest = max(tmp_path.iterdir())
    data = bytearray(latest.read_bytes())
    if damage == "cut short":
        latest.write_bytes(data[: len(data) // 2])
    elif damage == "one bit":
        data[-100] ^= 1
        latest.write_bytes(data)
    elif damage == "empty":
        latest.write_bytes(b"")
    elif damage == "another file":
        latest.write_bytes(b"PK\x03\x04 something else altogether" * 50)
    else:
        train_cell(make_cell(seed=9), dataset, checkpoints=CheckpointDirectory(tmp_path / "other", print), until=1)
        latest.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
    heard: list[str] = []
    training = Training(cell, dataset)
    CheckpointDirectory(tmp_path, heard.append).restore(training)
    assert len(training.records) == 2
    assert len(heard) == 1
    assert "damaged" in heard[0]
    assert "going back" in heard[0]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"model": Bomb()}, tmp_path / "000001-00000000.safetensors")
    with pytest.raises(Damaged):
        read_state(tmp_path / "000001-00000000.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = LocalDirectory(tmp_path)
    disk.write("state", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write("state", b"new")
    assert disk.read("state") == b"old"
    assert disk.names() == ["state"]


def test_a_file_is_synced_before_it_gets_its_name_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    LocalDirectory(tmp_path).write("state", b"new")
    assert calls == ["file", "rename", "directory"]


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_every_storage_keeps_what_it_is_given(tmp_path: Path, kind: str) -> None:
    where = {"path": str(tmp_path / "a"), "file": f"file://{tmp_path}/b", "memory": "memory://normlab-test/c"}[kind]
    place = open_storage(where)
    assert place.names() == []
    place.write("one", b"1")
    place.write("one", b"2")
    place.write("two", b"3")
    assert sorted(place.names()) == ["one", "two"]
    assert open_storage(where).read("one") == b"2"
    place.delete("one")
    place.delete("one")
    assert place.names() == ["two"]


def test_a_training_goes_on_from_shared_storage(dataset: Dataset, tmp_path: Path) -> None:
    where = f"file://{tmp_path}/shared"
    train_cell(make_cell(epochs=3), dataset, checkpoints=CheckpointDirectory(where, print), until=2)
    whole = train_cell(make_cell(epochs=3), dataset)
    rest = train_cell(make_cell(epochs=3), dataset, checkpoints=CheckpointDirectory(where, print))
    assert rest.test == whole.test


# Going on with other threads, another torch or on another processor changed the last bits without a word.
@pytest.mark.parametrize("what", ["threads", "torch", "cpu", "kernels"])
def test_what_the_last_bits_depend_on_is_kept_and_a_difference_said(
    what: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, heard = make_cell(epochs=3), list[str]()
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, heard.append), until=1)
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, heard.append), until=2)
    assert heard == []
    other = {
        "threads": ("torch.get_num_threads", lambda: 77),
        "torch": ("torch.__version__", "77"),
        "cpu": ("normlab.study.keeping.checkpoint.describe_machine", lambda: {"cpu": "77"}),
        "kernels": ("normlab.study.keeping.checkpoint.origin", lambda: "77"),
    }
    monkeypatch.setattr(*other[what])
    CheckpointDirectory(tmp_path, heard.append).restore(Training(cell, dataset))
    (said,) = heard
    assert f"goes on with {what} 77 instead of" in said


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4), st.floats(0, 1)
)
def test_damaged_bytes_are_noticed_or_change_nothing(changes: list[tuple[float, int]], cut: float) -> None:
    tensors = {"model.weight": torch.arange(6.0).reshape(2, 3), "model.count": torch.tensor(3)}
    whole = encode(tensors, {"records": [{"epoch": 1, "loss": float("nan")}], "code": 1})
    data = bytearray(whole)
    for where, byte in changes:
        data[int(where * len(data))] = byte
    for damaged in (bytes(data), whole[: int(cut * len(whole))], whole + bytes(data)):
        try:
            found, facts = decode(damaged)
        except Damaged:
            continue
        assert json.dumps(facts) == json.dumps(decode(whole)[1])
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
