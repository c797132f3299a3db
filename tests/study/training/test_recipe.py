"""Fine-tuning: the classifier alone first, a rate that rises, and settings that follow from the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.models import build_model
from normlab.study.schedule import warmup_factor
from normlab.study.spec import make_spec
from normlab.study.training.cell import Training
from normlab.study.training.contract import check_contract
from normlab.study.training.recipe import head_epochs
from tests.study.conftest import make_cell


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the network in `make_cell`, for ten classes."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(build_model("resnet8:width=4", "bn", num_classes=10, in_channels=1, seed=9).state_dict(), path)
    return str(path)


def test_with_weights_the_settings_are_those_of_fine_tuning(weights: str) -> None:
    (cell,) = make_spec({"weights": weights, "norms": "bn"}).cells(128)
    assert (cell.recipe, cell.lr, cell.warmup, cell.schedule) == ("finetune", 0.01, 1.0, "cosine")
    (cell,) = make_spec({"weights": weights, "norms": "bn", "lr": 0.3, "recipe": "scratch"}).cells(128)
    assert (cell.recipe, cell.lr, cell.warmup) == ("scratch", 0.3, 0.0)
    (cell,) = make_spec({"recipe": "finetune", "norms": "bn", "lrs": [0.3], "schedule": "constant"}).cells(128)
    assert (cell.lr, cell.schedule, cell.weights) == (0.3, "constant", "")
    with pytest.raises(UsageError, match="recipe: 'tune' is not known; expected one of: scratch, finetune"):
        make_spec({"recipe": "tune"})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_classifier_learns_alone_first(optimizer: str, dataset: Dataset, weights: str) -> None:
    training = Training(make_cell(recipe="finetune", weights=weights, optimizer=optimizer, lr=0.01), dataset)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    def moved() -> set[str]:
        return {name for name, p in training.model.named_parameters() if not torch.equal(p, before[name])}

    training.run_epoch()
    assert moved() == {"classifier.weight", "classifier.bias"}
    training.run_epoch()
    assert moved() == set(before)


def test_how_long_it_learns_alone() -> None:
    epochs = [head_epochs(make_cell(recipe="finetune", epochs=n)) for n in (1, 2, 9, 10, 30)]
    assert epochs == [0, 1, 1, 2, 6]
    assert head_epochs(make_cell(epochs=30)) == 0


def test_every_seed_starts_from_the_weights(dataset: Dataset, weights: str) -> None:
    one, other = (Training(make_cell(weights=weights, seed=seed, norm="gn"), dataset).model for seed in (0, 1))
    assert torch.equal(one.stem[0].weight, other.stem[0].weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    (note,) = check_contract("resnet8:width=4", ["gn"], dataset, weights)
    assert "classifier starts afresh" in note
    assert "10 classes, the data 4" in note


def test_the_rate_rises(dataset: Dataset) -> None:
    assert [warmup_factor(step, 4) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1, 1]
    assert warmup_factor(1, 0) == 1
    training = Training(make_cell(warmup=1.5, lr=0.08, epochs=2), dataset)  # four steps an epoch
    rates: list[float] = []
    step = training.step

    def noted(*where: object) -> None:
        rates.append(training.optimizer.param_groups[0]["lr"])
        step(*where)  # type: ignore[arg-type]

    training.step = noted  # type: ignore[method-assign]
    training.run_epoch()
    training.run_epoch()
    assert rates == pytest.approx([0.08 * k / 6 for k in range(1, 7)] + [0.08, 0.08])
    assert training.records[-1]["learning_rate"] == pytest.approx(0.08)


def test_the_keys_of_earlier_cells_are_theirs(weights: str) -> None:
    cell = make_cell()
    assert dataclasses.replace(cell, recipe="scratch", weights="", warmup=0.0).key("d") == cell.key("d")
    others = [dataclasses.replace(cell, **{name: value}).key("d")  # type: ignore[arg-type]
              for name, value in (("recipe", "finetune"), ("weights", weights), ("warmup", 1.0))]  # fmt: skip
    assert len({cell.key("d"), *others}) == 4


def test_other_weights_are_other_cells(weights: str, dataset: Dataset, tmp_path: Path) -> None:
    from normlab.study.source import identity

    plain, with_weights = make_spec({}), make_spec({"weights": weights})
    assert identity(dataset, plain) == dataset.hash
    assert identity(dataset, with_weights) != dataset.hash
