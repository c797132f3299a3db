"""A cell trained by two processes learns what one process learns, and whatever fails, nothing hangs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import UsageError
from normlab.study.running import torchrun
from normlab.study.running.run import Options, make_executor
from normlab.study.running.shared import SharedTraining, check_synchronizable
from normlab.study.spec import StudySpec
from normlab.study.training.cell import Outcome, Training, train_cell
from tests.layers.ranks import Ranks
from tests.study.conftest import corner_set, make_cell
from tests.study.processes import HANGS, SMALL, STARTED, results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


def train(rank: int, images: int, kind: type[Training], changes: dict[str, Any]) -> Outcome:
    return train_cell(make_cell(**changes), corner_set(images), kind=kind)


@pytest.mark.parametrize(
    ("images", "changes"),
    [
        (66, {"norm": "bn", "batch_size": 7, "augment": "crop,flip"}),  # shares of 4 and 3, at last of 2 and 1
        (66, {"norm": "bin", "batch_size": 7, "optimizer": "adam", "lr": 0.01}),
        (60, {"norm": "gn", "batch_size": 7}),
        (8, {"norm": "bn", "batch_size": 1, "lr": 0.005}),  # the second process never has an image
    ],
)
def test_two_processes_learn_what_one_learns(ranks: Ranks, images: int, changes: dict[str, Any]) -> None:
    alone = train(0, images, Training, changes)
    for found in ranks.run(train, images, SharedTraining, changes):
        assert found.status == "done"
        for got, want in zip(found.epochs, alone.epochs, strict=True):
            assert got["train_loss"] == pytest.approx(want["train_loss"], rel=1e-3)
            assert got["val_loss"] == pytest.approx(want["val_loss"], rel=1e-3)
            assert got["train_accuracy"] == pytest.approx(want["train_accuracy"], abs=1.5 / images)
            assert got["gradients"] == pytest.approx(want["gradients"], rel=1e-2, abs=1e-5)
    assert found.backend == ("numba_cpu" if changes["norm"] == "gn" else "reference")


def train_rank_local(rank: int, images: int, changes: dict[str, Any]) -> Outcome:
    from normlab.study.running import shared

    kept, shared.synchronize = shared.synchronize, lambda model: model
    try:
        return train(rank, images, SharedTraining, changes)
    finally:
        shared.synchronize = kept


def test_the_comparison_has_teeth(ranks: Ranks) -> None:
    """With batch statistics of each process alone, the losses are others."""
    changes = {"norm": "bn", "batch_size": 7}
    alone = train(0, 66, Training, changes)
    found, _ = ranks.run(train_rank_local, 66, changes)
    assert found.epochs[0]["train_loss"] != pytest.approx(alone.epochs[0]["train_loss"], rel=1e-3)


# --- started by torchrun ---------------------------------------------------------------------------------------------


def under_torchrun(*arguments: str, directory: Path) -> tuple[int, str]:
    """`normlab compare` on the small study by two processes: its exit code, and everything that was said."""
    log = directory.parent / f"{directory.name}.log"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "normlab",
        "compare", *SMALL, *arguments, "--no-report", "--device", "cpu", "--out", str(directory),
    ]  # fmt: skip
    with log.open("ab") as output:
        STARTED.append(subprocess.Popen(command, stdout=output, stderr=output, cwd=directory.parent))
    return STARTED[-1].wait(HANGS), log.read_text()


@pytest.mark.slow
def test_a_study(tmp_path: Path) -> None:
    """Cell after cell is done, by two processes of which one speaks."""
    code, said = under_torchrun("--norms", "bn,gn", "--epochs", "2", directory=tmp_path / "two")
    assert code == 0, said
    found = results(tmp_path / "two")
    assert [(cell["status"], len(cell["epochs"])) for cell in found["cells"]] == [("done", 2)] * 2
    assert found["environment"]["processes"] == 2
    assert said.count("started") == 2


FAILING = """
import os
from torch import nn

class Failing(nn.Module):
    def __init__(self, norm, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 4, 3), norm(4), nn.Flatten(), nn.Linear(16, num_classes))

    def forward(self, x):
        if os.environ["RANK"] == "{rank}" and self.training:
            raise RuntimeError("rank {rank} cannot")
        return self.layers(x)

def failing(norm, num_classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), Failing(norm, num_classes, in_channels))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_alone_ends_the_run(tmp_path: Path, rank: int) -> None:
    (tmp_path / "nets.py").write_text(FAILING.format(rank=rank))
    code, said = under_torchrun("--norms", "bn", "--model", "nets:failing", directory=tmp_path / "two")
    assert code != 0
    assert f"rank {rank} cannot" in said
    assert "timeout" not in said.lower()
    if rank == 0:
        (cell,) = results(tmp_path / "two")["cells"]
        assert cell["status"] == "failed"


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave it out, as in --norms bn"):
        check_synchronizable(_stock(), "cpu")
    check_synchronizable(_stock(), "cuda:0")
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert torchrun.launched()
    assert not torchrun.follows()
    with pytest.raises(UsageError, match="leave out --backend and --jobs"):
        make_executor(StudySpec(), Options(jobs=2), corner_set(8), 2, None, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes on this machine for 1 GPUs"):
        make_executor_on_one_gpu(monkeypatch, tmp_path)


def make_executor_on_one_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("normlab.study.running.run.find_devices", lambda wanted: ["cuda:0"])
    make_executor(StudySpec(), Options(), corner_set(8), 2, None, folder)  # type: ignore[arg-type]


def _stock() -> Any:
    from normlab import make_norm

    return make_norm("torch-bn", 4)


def test_one_process_is_not_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not torchrun.launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not torchrun.launched()
