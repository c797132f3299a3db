"""Compiled training steps: what is learned is the same, and a cell is known by it."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.study.axes import TRAINING_CODE
from normlab.study.keeping.checkpoint import CheckpointDirectory
from normlab.study.spec import make_spec
from normlab.study.training.cell import Training, train_cell
from tests.study.conftest import make_cell

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by torch, of what its compiler uses
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that torch.compile does before it writes code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def small(norm: Callable[[int], nn.Module], num_classes: int, in_channels: int) -> nn.Module:
    """Little to write C++ for, which takes the compiler seconds a layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3),
        norm(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


SMALL = f"{__name__}:small"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "norm", ["bn", "gn", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("bin", "none", "torch-bn"))]
)
def test_it_learns_the_same(norm: str, dataset: Dataset) -> None:
    """With a last batch of another size, and evaluations in between."""
    eager = train_cell(make_cell(model=SMALL, norm=norm, epochs=2, batch_size=20), dataset)
    compiled = train_cell(make_cell(model=SMALL, norm=norm, epochs=2, batch_size=20, compiled=True), dataset)
    for one, other in zip(eager.epochs, compiled.epochs, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
    assert compiled.status == "done"


@needs_compiler
@pytest.mark.parametrize("model", [SMALL, pytest.param("resnet8:width=4", marks=pytest.mark.slow)])
def test_by_the_real_compiler(model: str, dataset: Dataset) -> None:
    eager = train_cell(make_cell(model=model, epochs=1), dataset)
    compiled = train_cell(make_cell(model=model, epochs=1, compiled=True), dataset)
    assert compiled.epochs[0]["train_loss"] == pytest.approx(eager.epochs[0]["train_loss"], rel=1e-3)


@pytest.mark.usefixtures("quick")
def test_a_killed_training_goes_on_as_it_would_have(dataset: Dataset, tmp_path: Path) -> None:
    cell = make_cell(model=SMALL, epochs=2, compiled=True)
    whole = train_cell(cell, dataset)
    train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, print), until=1)
    rest = train_cell(cell, dataset, checkpoints=CheckpointDirectory(tmp_path, print))
    assert [e["val_loss"] for e in rest.epochs] == [e["val_loss"] for e in whole.epochs]


@pytest.mark.usefixtures("quick")
def test_the_ninth_network_is_compiled_too(dataset: Dataset) -> None:
    """torch.compile gives up on a function of which it has compiled eight variants: here one, and it is an error."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for seed in range(3):
            training = Training(make_cell(model=SMALL, epochs=1, compiled=True, seed=seed), dataset)
            images, labels = training.train_feed[slice(0, 16)]
            training.forward(images, labels)


def test_a_cell_is_known_by_it() -> None:
    assert make_cell(compiled=True).key("data") != make_cell().key("data")


def test_cells_from_before_there_was_a_choice_keep_their_names() -> None:
    """The key as it was written down when a cell had no such fields."""
    first = [
        "norm",
        "model",
        "seed",
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "schedule",
        "momentum",
        "weight_decay",
        "dropout",
        "augment",
        "precision",
    ]
    facts = {name: asdict(make_cell())[name] for name in first}
    facts |= {"data": "hash of the data", "code": TRAINING_CODE["float32"]}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    assert make_cell().key("hash of the data") == key


def test_a_study_is_compiled_or_not() -> None:
    assert all(cell.compiled for cell in make_spec({"compile": True}).cells(100))
    assert not any(cell.compiled for cell in make_spec({}).cells(100))


def test_without_a_compiler_it_is_said(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="--compile needs a C\\+\\+ compiler"):
        Training(make_cell(compiled=True), dataset)
