"""bfloat16 where it loses nothing: it learns, the weights stay float32, and old studies know their cells again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.layers.norms import BatchNorm
from normlab.study.keeping.checkpoint import CheckpointDirectory
from normlab.study.spec import make_spec
from normlab.study.training import precision
from normlab.study.training.cell import Training, train_cell
from tests.study.conftest import make_cell

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(not precision._has_bf16(CPU), reason="this processor has no arithmetic for bfloat16")


def dtypes(training: Training, kind: type[torch.nn.Module]) -> set[torch.dtype]:
    """Of what the layers of this kind answer in a step."""
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _, __, y: seen.add(y.dtype))
        for module in training.model.modules()
        if isinstance(module, kind)
    ]
    images, labels = training.train_feed[slice(0, 16)]
    training.forward(images, labels)
    for hook in hooks:
        hook.remove()
    return seen


@needs_bf16
@pytest.mark.parametrize("norm", ["bn", "bin", "gn", "torch-bn"])
def test_it_learns_in_bfloat16_with_weights_in_float32(dataset: Dataset, norm: str) -> None:
    cell = make_cell(norm=norm, precision="bf16", epochs=8, lr=0.02)
    training = Training(cell, dataset)
    assert dtypes(training, torch.nn.Conv2d) == {torch.bfloat16}
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    outcome = train_cell(cell, dataset)
    assert outcome.status == "done"
    assert outcome.epochs[-1]["train_accuracy"] > 0.9
    usual = train_cell(make_cell(norm=norm, epochs=8, lr=0.02), dataset)
    assert outcome.epochs[0]["train_loss"] == pytest.approx(usual.epochs[0]["train_loss"], rel=0.1)
    assert outcome.epochs[0]["train_loss"] != usual.epochs[0]["train_loss"]


@needs_bf16
def test_our_norms_compute_on_the_fast_kernels_all_the_same(dataset: Dataset) -> None:
    # a warning that the reference serves would be an error here
    training = Training(make_cell(precision="bf16", epochs=1), dataset)
    assert dtypes(training, BatchNorm) == {torch.bfloat16}
    training.run_epoch()
    assert training.backend() == "numba_cpu"


@needs_bf16
def test_evaluation_is_in_float32(dataset: Dataset) -> None:
    training = Training(make_cell(precision="bf16", epochs=1), dataset)
    training.run_epoch()
    usual = Training(make_cell(), dataset)
    usual.model.load_state_dict(training.model.state_dict())
    assert training.evaluate(dataset.val) == usual.evaluate(dataset.val)


def test_float32_computes_as_if_there_were_no_choice(dataset: Dataset) -> None:
    training = Training(make_cell(), dataset)
    assert dtypes(training, torch.nn.Conv2d) == {torch.float32}
    assert dtypes(training, BatchNorm) == {torch.float32}


def test_a_device_without_bfloat16_is_told(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bf16", lambda device: False)
    with pytest.raises(UsageError, match=r"cpu has no arithmetic for bfloat16.*--precision float32"):
        Training(make_cell(precision="bf16"), dataset)
    Training(make_cell(), dataset)


def test_a_cell_is_known_by_its_precision() -> None:
    assert make_cell(precision="bf16").key("data") != make_cell().key("data")


@needs_bf16
def test_a_checkpoint_of_another_precision_is_not_taken(dataset: Dataset, tmp_path: Path) -> None:
    train_cell(make_cell(), dataset, checkpoints=CheckpointDirectory(tmp_path, print), until=1)
    heard: list[str] = []
    training = Training(make_cell(precision="bf16"), dataset)
    CheckpointDirectory(tmp_path, heard.append).restore(training)
    assert training.records == []
    assert "another training" in heard[0]


def test_a_study_has_one_precision() -> None:
    assert {cell.precision for cell in make_spec({"precision": "bf16"}).cells(100)} == {"bf16"}
    assert {cell.precision for cell in make_spec({}).cells(100)} == {"float32"}
    with pytest.raises(UsageError, match="precision: 'fp8' is not known; expected one of: float32, bf16"):
        make_spec({"precision": "fp8"})
