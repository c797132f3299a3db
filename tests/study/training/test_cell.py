"""Training one cell: what is shared between norms, what is recorded, and how it can end."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normlab.data import Dataset, Split
from normlab.errors import DataError
from normlab.study.keeping.checkpoint import FINAL, CheckpointDirectory, read_state
from normlab.study.training import cell as cell_module
from normlab.study.training.cell import Outcome, Training, shuffled, split_batches, train_cell
from normlab.study.training.feed import Feed
from tests.study.conftest import corner_set, make_cell


def test_it_learns_and_records_every_epoch(dataset: Dataset) -> None:
    heard = []
    outcome = train_cell(make_cell(epochs=8), dataset, on_epoch=heard.append)
    assert outcome.status == "done"
    assert heard == outcome.epochs
    assert [r["epoch"] for r in heard] == list(range(1, 9))
    assert outcome.epochs[-1]["train_accuracy"] > 0.9
    assert outcome.test is not None
    assert outcome.test["accuracy"] > 0.9
    for record in heard:
        for split in ("train", "val"):
            assert record[f"{split}_micro_f1"] == pytest.approx(record[f"{split}_accuracy"])
        assert record["seconds"] > 0
        assert record["images_per_second"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is counted on Linux only")
def test_it_says_how_much_memory_it_took_itself(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = 400 << 20
    np.ones(ballast, np.uint8)  # before training: not this cell's
    frugal = train_cell(make_cell(epochs=1), dataset).peak_memory_bytes

    def greedy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        np.ones(ballast, np.uint8)
        return images

    monkeypatch.setattr(cell_module, "augmentation_named", lambda setting: greedy)
    wasteful = train_cell(make_cell(epochs=1), dataset).peak_memory_bytes
    assert frugal is not None
    assert wasteful is not None
    assert wasteful > frugal + ballast / 2


def test_the_same_cell_twice_is_the_same_to_the_last_bit(dataset: Dataset) -> None:
    cell = make_cell(augment="crop,flip", dropout=0.3)
    torch.manual_seed(1)
    first = train_cell(cell, dataset)
    torch.manual_seed(2)
    second = train_cell(cell, dataset)
    for a, b in zip(first.epochs, second.epochs, strict=True):
        assert (a["train_loss"], a["val_loss"]) == (b["train_loss"], b["val_loss"])
    assert first.test == second.test
    assert train_cell(replace(cell, seed=1), dataset).test != first.test


def test_training_leaves_the_global_generator_alone(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    train_cell(make_cell(epochs=1), dataset)
    assert torch.equal(before, torch.get_rng_state())


def test_every_norm_sees_the_same_batches(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(norm: str) -> list[torch.Tensor]:
        seen = []
        original = Training.inputs
        monkeypatch.setattr(Training, "inputs", lambda self, x: seen.append(x.clone()) or original(self, x))
        train_cell(make_cell(norm=norm, augment="crop,flip"), dataset)
        monkeypatch.setattr(Training, "inputs", original)
        return seen

    for a, b in zip(batches("bn"), batches("none"), strict=True):
        assert torch.equal(a, b)


def test_a_seed_and_an_epoch_decide_the_order() -> None:
    assert np.array_equal(shuffled(50, 3, 2), shuffled(50, 3, 2))
    assert not np.array_equal(shuffled(50, 3, 2), shuffled(50, 3, 3))
    assert not np.array_equal(shuffled(50, 3, 2), shuffled(50, 4, 2))


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (5, 8, [5]), (3, 1, [1, 1, 1]), (1, 4, [1]), (3, 2, [3])],
)
def test_a_last_batch_of_one_joins_the_one_before(images: int, batch_size: int, sizes: list[int]) -> None:
    batches = split_batches(np.arange(images), batch_size)
    assert [len(b) for b in batches] == sizes
    assert np.array_equal(np.concatenate(batches), np.arange(images))


def test_an_empty_training_split_is_told() -> None:
    with pytest.raises(DataError, match="empty"):
        split_batches(np.arange(0), 4)


def test_batch_norm_survives_a_last_batch_of_one() -> None:
    # 8x8 images are 2x2 at the last stage, so one sample would do; 33 = 32 + 1 goes through joined anyhow
    outcome = train_cell(make_cell(epochs=1), corner_set(33))
    assert outcome.status == "done"


def test_a_loss_that_is_not_finite_ends_it_with_its_epoch(dataset: Dataset) -> None:
    outcome = train_cell(make_cell(norm="none", lr=1e12, epochs=3), dataset)
    assert outcome.status == "diverged"
    assert outcome.reason is not None
    assert outcome.reason.startswith("epoch 1:")
    assert outcome.test is None


def test_pausing_and_going_on_is_a_matter_of_epochs(dataset: Dataset) -> None:
    outcome = train_cell(make_cell(epochs=3), dataset, until=1)
    assert outcome.status == "paused"
    assert len(outcome.epochs) == 1
    assert outcome.test is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_every_optimizer_moves_every_parameter(dataset: Dataset, optimizer: str) -> None:
    training = Training(make_cell(optimizer=optimizer, lr=1e-3, norm="bin"), dataset)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    training.run_epoch()
    still = [name for name, p in training.model.named_parameters() if torch.equal(p, before[name])]
    # the gate starts at 1, its upper bound, where some channels may want to stay
    assert [name for name in still if "rho" not in name] == []


def test_the_gate_learns_ten_times_faster_without_decay_and_stays_between_its_bounds(dataset: Dataset) -> None:
    training = Training(make_cell(norm="bin", lr=0.5), dataset)
    rhos = [p for name, p in training.model.named_parameters() if name.endswith("rho")]
    groups = {id(p): group for group in training.optimizer.param_groups for p in group["params"]}
    assert all(groups[id(p)]["initial_lr"] == pytest.approx(5.0) for p in rhos)
    assert all(groups[id(p)]["weight_decay"] == 0 for p in rhos)
    training.run_epoch()
    assert all(((p >= 0) & (p <= 1)).all() for p in rhos)
    assert any((p < 1).any() for p in rhos)


def test_our_batch_norm_and_the_stock_one_train_alike() -> None:
    # 50 steps in float32: the sanity check that the comparison itself offers
    data = corner_set(400)
    cell = make_cell(epochs=1, batch_size=8, lr=0.01)
    ours, stock = (train_cell(replace(cell, norm=norm), data).epochs[0] for norm in ("bn", "torch-bn"))
    assert ours["train_loss"] == pytest.approx(stock["train_loss"], rel=1e-3)
    assert math.isclose(ours["val_loss"], stock["val_loss"], rel_tol=1e-2)


@pytest.mark.parametrize("resident", [False, True])
def test_a_feed_answers_the_images_asked_for(resident: bool) -> None:
    split = corner_set(20).train
    for array in (split.images, split.labels):
        array.setflags(write=False)
    feed = Feed(split, torch.device("cpu"), resident=resident)
    assert feed.resident is resident
    for which in (np.array([7, 3, 3, 19]), slice(4, 9), slice(18, 30), np.arange(0)):
        images, labels = feed[which]
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), split.images[which])
        assert np.array_equal(labels.numpy(), split.labels[which])
    assert not Feed(split, torch.device("cpu")).resident


def test_losses_that_are_looked_at_late_are_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cell(augment="crop,flip", epochs=2)  # four steps an epoch
    at_once = train_cell(cell, dataset)
    monkeypatch.setitem(cell_module.LOOK_EVERY, "cpu", 3)
    late = train_cell(cell, dataset)
    assert late.test == at_once.test
    assert [r["train_loss"] for r in late.epochs] == [r["train_loss"] for r in at_once.epochs]


@pytest.mark.parametrize("every", [1, 3, 50])
def test_the_step_that_diverged_is_named_however_late_it_is_seen(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    original = Training.forward

    def fails_at_the_second(training: Training, images: torch.Tensor, labels: torch.Tensor) -> Any:
        loss, mean, predictions = original(training, images, labels)
        return (loss, mean * math.nan if training.progress.step == 1 else mean, predictions)

    monkeypatch.setattr(Training, "forward", fails_at_the_second)
    monkeypatch.setitem(cell_module.LOOK_EVERY, "cpu", every)
    outcome = train_cell(make_cell(), dataset)
    assert outcome.status == "diverged"
    assert outcome.reason == "epoch 1: the training loss is nan at step 2"


def test_our_networks_are_channels_last_on_a_cpu_and_a_users_own_is_left_as_it_is(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_view.py").write_text(
        "from torch import nn\n"
        "class Rows(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.view(len(x), -1)\n"
        "def net(norm, num_classes, in_channels):\n"
        "    rest = Rows(), nn.Linear(144, num_classes)\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), norm(4), nn.ReLU(), *rest)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = Training(make_cell(model="own_view:net"), dataset)
    own.run_epoch()
    assert all(p.is_contiguous() for p in own.model.parameters())
    ours = Training(make_cell(), dataset)
    seen: list[torch.Tensor] = []
    ours.model.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output))  # type: ignore[index, union-attr]
    ours.run_epoch()
    assert all(planes.is_contiguous(memory_format=torch.channels_last) for planes in seen)


def test_a_share_of_each_label_is_spread_over_all_classes(dataset: Dataset) -> None:
    training = Training(make_cell(label_smoothing=0.3), dataset)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    log_p = logits.log_softmax(1)
    expected = -(0.7 * log_p[torch.arange(6), labels] + 0.3 * log_p.mean(1)).mean()
    torch.testing.assert_close(training.loss(logits, labels), expected)
    plain, smoothed = (train_cell(make_cell(epochs=1, label_smoothing=v), dataset).epochs[0] for v in (0.0, 0.3))
    assert plain["train_loss"] != smoothed["train_loss"], "the steps use it"


class Scripted(Training):
    """A training whose validation accuracy follows a script; the network learns as it does."""

    accuracies = (0.2, 0.6, 0.4, 0.5, 0.3, 0.9)

    def evaluate(self, split: Split) -> dict[str, float]:
        found = super().evaluate(split)
        return {**found, "accuracy": self.accuracies[len(self.records)]} if split is self.dataset.val else found


def states(directory: Path) -> dict[str, torch.Tensor]:
    return read_state(directory / FINAL)[0]


def test_it_ends_early_and_keeps_its_best_epoch(dataset: Dataset, tmp_path: Path) -> None:
    def trained(name: str, until: int | None = None, **axes: Any) -> Outcome:
        keep = CheckpointDirectory(tmp_path / name, lambda text: None)
        # the schedule would otherwise depend on how many epochs are planned
        cell = make_cell(schedule="constant", **axes)
        return train_cell(cell, dataset, checkpoints=keep, kind=Scripted, until=until)

    two = trained("two", epochs=2)
    best = trained("best", epochs=6, patience=2, best_epoch=True)
    assert (best.status, len(best.epochs), best.test) == ("done", 4, two.test)
    assert all(torch.equal(value, states(tmp_path / "best")[name]) for name, value in states(tmp_path / "two").items())
    last = trained("last", epochs=6, patience=2)
    assert len(last.epochs) == 4
    assert any(not torch.equal(v, states(tmp_path / "last")[n]) for n, v in states(tmp_path / "two").items())
    # what is paused keeps its best network
    assert trained("cut", epochs=6, patience=2, best_epoch=True, until=3).status == "paused"
    again = trained("cut", epochs=6, patience=2, best_epoch=True)
    assert (len(again.epochs), again.test) == (4, two.test)
    assert trained("cut", epochs=6, patience=2, best_epoch=True).test == two.test
