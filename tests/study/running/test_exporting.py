"""A study's curves in other people's trackers: what each of them reads back is what the cells reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import UsageError
from normlab.study.running.exporting import Exporting, exporting
from normlab.study.running.jobs import Job
from normlab.study.spec import DataChoice, StudySpec
from tests.study.fakes import Silent

CURVE = [0.9, 0.7, 0.5]


class Console(Silent):
    """A console that counts what it is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def started(self, job: Job) -> None:
        self.passed.append("started")

    def epoch(self, job: Job, record: dict[str, Any]) -> None:
        self.passed.append("epoch")

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self.passed.append(status)

    def data(self, done: int, total: int, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def jobs() -> list[Job]:
    cells = StudySpec(data="digits", norms=("bn", "gn:groups=2"), epochs=3).cells(100)
    return [Job(i, str(i), cell, DataChoice("digits")) for i, cell in enumerate(cells)][:2]


def run(tracker: str, directory: Path) -> Console:
    """Two cells that train side by side, of which the second fails."""
    console = Console()
    listener = exporting(console, tracker, directory)
    first, second = jobs()
    with listener:
        listener.started(first)
        listener.started(second)
        for i, loss in enumerate(CURVE, 1):
            for job in (first, second):
                record = {"epoch": i, "train_loss": loss + job.id, "val_accuracy": math.nan, "best": True}
                listener.epoch(job, record)
        listener.ended(first, "done", None)
        listener.ended(second, "failed", "diverged")
    assert console.passed == ["started"] * 2 + ["epoch"] * 6 + ["done", "failed"]
    assert console.notices == []
    return console


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: nothing was written for it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("tensorboard", tmp_path)
    folders = sorted((tmp_path / "tensorboard").iterdir())
    assert len(folders) == 2
    for offset, folder in enumerate(folders):
        events = EventAccumulator(str(folder))
        events.Reload()
        assert events.Tags()["scalars"] == ["train_loss"]
        found = [(e.step, e.value) for e in events.Scalars("train_loss")]
        assert found == [(i, pytest.approx(loss + offset)) for i, loss in enumerate(CURVE, 1)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: nothing was written for it")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run("mlflow", tmp_path)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(tmp_path.name)
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda r: r.data.params["norm"])
    assert [r.info.status for r in runs] == ["FINISHED", "FAILED"]
    assert [r.data.params["norm"] for r in runs] == ["bn", "gn:groups=2"]
    found = [(m.step, m.value) for m in client.get_metric_history(runs[0].info.run_id, "train_loss")]
    assert sorted(found) == list(enumerate(CURVE, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: nothing leaves the machine."""
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: nothing was written for it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run("wandb", tmp_path)
    kept = list((tmp_path / "wandb").rglob("*.wandb"))
    assert len(kept) == 2
    assert all(b"train_loss" in path.read_bytes() for path in kept)


@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in where Trackio itself would take a server along: what it is called with is what it documents."""
    trackio = pytest.importorskip("trackio", reason="Trackio is not installed: nothing was written for it")
    logged: list[tuple[str, int, dict[str, float]]] = []

    class Kept:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append((self.name, step, metrics))

        def finish(self) -> None: ...

    def init(project: str, name: str, config: dict[str, Any], embed: bool, **_: Any) -> Kept:
        assert project == tmp_path.name
        assert json.dumps(config)
        return Kept(name)

    monkeypatch.setattr(trackio, "init", init)
    run("trackio", tmp_path)
    assert [step for _, step, _ in logged] == [1, 1, 2, 2, 3, 3]
    assert logged[-1][2] == {"train_loss": CURVE[-1] + 1}


def test_a_tracker_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk of the tracker's must not end a night's training."""
    console = Console()
    listener = Exporting(console, ["tensorboard"], tmp_path)
    job = jobs()[0]

    def fails(*_: object) -> None:
        raise OSError("no space left\nanywhere")

    monkeypatch.setattr(listener, "_open", fails)
    with listener:
        for i in (1, 2):
            listener.epoch(job, {"epoch": i, "train_loss": 0.1})
    assert console.passed == ["epoch", "epoch"]
    assert console.notices == ["--log tensorboard is left out from here on: no space left"]


def test_a_tracker_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tensorbord' is not known; expected one of: tensorboard"):
        exporting(Console(), "tensorbord", tmp_path)
    console = Console()
    assert exporting(console, "", tmp_path) is console
