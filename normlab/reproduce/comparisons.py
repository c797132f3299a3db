"""Experiments that are comparisons: a spec each, run by the study engine."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab import report
from normlab.reproduce.experiment import Setting
from normlab.study.running.jobs import Job
from normlab.study.running.run import Options, run_study
from normlab.study.spec import make_spec

# what makes a study a matter of seconds, for trying out
QUICK = {"models": "resnet8:width=4", "limit_train": 64, "limit_eval": 64, "epochs": 2}
# what decides most findings in minutes, on two cores
SMALL = {"seeds": 8, "model": "resnet8:width=8", "image_size": 16, "epochs": 6, "limit_train": 3000, "limit_eval": 2000}
Measure = Callable[[dict[str, Any]], float]  # of a cell
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Comparison:
    """The trained cells of a study, as in results.json, and where it ran."""

    cells: list[dict[str, Any]]
    environment: dict[str, Any]

    def is_cifar10(self, setting: Setting) -> bool:
        """Whether the images are CIFAR-10's, brought to the setting's size or not, JPEG compression or not."""
        size = setting.image_size or 32
        names = tuple(name.lower() for name in self.environment["class_names"])
        return names == _CIFAR10 and self.environment["image_shape"] == [3, size, size]

    def describe_data(self, setting: Setting) -> str:
        """The images in a few words."""
        size = " x ".join(map(str, self.environment["image_shape"]))
        counts = ", ".join(f"{self.environment[f'{split}_images']} {split}" for split in ("train", "val", "test"))
        if setting.data is None:
            name = "the digits that come with normlab (no --data was named)"
        elif self.is_cifar10(setting):
            name = "CIFAR-10 (JPEG)" if any("JPEG" in note for note in self.environment["notes"]) else "CIFAR-10"
        else:
            name = self.environment["data"]
        return f"{name}: {counts} images of {size}"

    @property
    def seconds(self) -> float:
        """How long the trainings took, one after the other, earlier runs that were resumed included."""
        return float(sum(record["seconds"] for cell in self.cells for record in cell["epochs"]))

    def length(self, spec: dict[str, Any]) -> str:
        """The epochs of a cell, and the spec's if those are more."""
        epochs, published = self.cells[0]["planned_epochs"], spec["epochs"]
        return f"{epochs} of {published} epochs" if epochs < published else f"{epochs} epochs"

    def finished(self, **which: Any) -> list[dict[str, Any]]:
        """The cells that ended well, of these settings, by seed."""
        chosen = [c for c in self.cells if c["status"] == "done" and all(c[k] == v for k, v in which.items())]
        return sorted(chosen, key=lambda c: c["seed"])

    def values(self, of: Measure, **which: Any) -> list[float]:
        """One number per seed."""
        return [of(cell) for cell in self.finished(**which)]

    def paired(self, of: Measure, one: dict[str, Any], other: dict[str, Any]) -> tuple[list[float], list[float]]:
        """The numbers of two settings, at the seeds that finished in both."""
        by_seed = [{c["seed"]: of(c) for c in self.finished(**which)} for which in (one, other)]
        shared = sorted(by_seed[0].keys() & by_seed[1].keys())
        return [by_seed[0][s] for s in shared], [by_seed[1][s] for s in shared]

    def unfinished(self) -> list[str]:
        """A sentence for every kind of cell that diverged or failed."""
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for cell in self.cells:
            if cell["status"] != "done":
                counts[cell["norm"], cell["status"]] += 1
        return [f"{norm}: {count} trainings {status}" for (norm, status), count in counts.items()]


@contextmanager
def trained(
    name: str, setting: Setting, full: dict[str, Any], quick: dict[str, Any] | None = None
) -> Iterator[tuple[Comparison, Path]]:
    """Run a spec at the setting's scale; yields its cells, and the directory that holds their networks.

    The setting's own lengths go before the spec's, and the study is kept in runs/reproduce/NAME, or NAME-small, so that
    one that was interrupted goes on. A quick one leaves nothing behind and trains in this process, in one thread:
    networks this small only wait for a second one.
    """
    spec = make_spec(
        {
            "data": setting.data or "digits",
            "seeds": len(setting.seed_range),
            **({**full, **QUICK, **(quick or {})} if setting.quick else {**full, **setting.shorter}),
        }
    )
    kept = nullcontext(str(Path("runs") / "reproduce" / (name if setting.scale == "full" else f"{name}-small")))
    with ExitStack() as stack:
        if setting.quick:
            stack.enter_context(_one_thread())
        directory = stack.enter_context(tempfile.TemporaryDirectory() if setting.quick else kept)
        results = run_study(spec, Path(directory), Options(inline=setting.quick), console=_Announcer(setting.say))
        if not setting.quick:
            report.write(directory)
        yield Comparison(results["cells"], results["environment"]), Path(directory)


def compare(name: str, setting: Setting, full: dict[str, Any], quick: dict[str, Any] | None = None) -> Comparison:
    """As `trained`, for an experiment that needs no more than the numbers."""
    with trained(name, setting, full, quick) as (found, _):
        return found


def scale_of(found: Comparison, setting: Setting, spec: Mapping[str, Any], *, like: str = "CIFAR-10") -> str:
    """How a study departs from the published one, in words; empty if it does not. `like` names the published images."""
    parts = [setting.shortened(spec)]
    if like != "CIFAR-10" or not found.is_cifar10(setting):
        name = "digits" if setting.data is None else Path(found.environment["data"]).name
        parts.append(f"on {name} instead of {like}")
    return ", ".join(part for part in parts if part)


def effort(*found: Comparison) -> str:
    """How many trainings there were and how long they took."""
    return f"{sum(len(one.cells) for one in found)}, {sum(one.seconds for one in found):.0f} s one after the other"


def curve_records(cells: Sequence[dict[str, Any]], series: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """One row per cell and epoch, for charts."""
    names = ("epoch", "train_accuracy", "val_accuracy", "train_loss", "val_loss")
    return [
        {"series": series(cell), "seed": cell["seed"], **{name: record[name] for name in names}}
        for cell in cells
        for record in cell["epochs"]
    ]


def test_accuracy(cell: dict[str, Any]) -> float:
    """Accuracy on the test split."""
    value: float = cell["test"]["accuracy"]
    return value


def train_accuracy(cell: dict[str, Any]) -> float:
    """Accuracy on the training images in the steps of the last epoch."""
    value: float = cell["epochs"][-1]["train_accuracy"]
    return value


def val_accuracy(cell: dict[str, Any]) -> float:
    """Accuracy on the validation split after the last epoch."""
    value: float = cell["epochs"][-1]["val_accuracy"]
    return value


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Announcer:
    """Passes a study's progress on to the experiment's `say`: one sentence for each cell."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def expect(self, cells: int, done: int) -> None:
        self._say(f"{cells} trainings, {done} done already")

    def started(self, job: Job) -> None: ...

    def epoch(self, job: Job, record: dict[str, Any]) -> None: ...

    def ended(self, job: Job, status: str, reason: str | None) -> None:
        self._say(f"{job.cell.label()}: {status}{f' ({reason})' if reason else ''}")

    def notice(self, text: str) -> None:
        self._say(text)

    def data(self, done: int, total: int, what: str) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...
