"""The state of a training on disk: safetensors with a JSON header; a power cut leaves the old or the new.

The two latest states are kept, each with a digest of its content, so that a damaged one is noticed and the one
before taken. Loading parses numbers and JSON and executes nothing. How a file comes to be whole or not at all is
`normlab.study.keeping.storage`'s affair.

Nothing about random generators is in it: every random choice of a training is a function of its seed and of the
position (`normlab.study.training.cell`), and the position is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from normlab.kernels.runtime.objects import origin
from normlab.study.axes import TRAINING_CODE, Cell
from normlab.study.keeping.digests import digest_of
from normlab.study.keeping.environment import describe_machine
from normlab.study.keeping.storage import open_storage
from normlab.study.training.cell import Progress, Training

FINAL = "final.safetensors"
KEPT = 2
EVERY_SECONDS = 600.0  # within an epoch

State = tuple[dict[str, Tensor], dict[str, Any]]


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class CheckpointDirectory:
    """The checkpoints of one cell. `notice` is called with remarks for the user about a resumed training."""

    def __init__(self, where: Path | str, notice: Callable[[str], None], every_seconds: float = EVERY_SECONDS) -> None:
        self._storage = open_storage(where)
        self._notice, self._every = notice, every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is long since the last state was kept."""
        return time.monotonic() - self._last > self._every

    def keep(self, training: Training) -> None:
        """Keep the whole state; of the earlier ones, the latest stays."""
        name = f"{len(training.records):06d}-{training.progress.step:08d}.safetensors"
        self._storage.write(name, encode(*state_of(training)))
        self._last = time.monotonic()
        for old in self._states()[:-KEPT]:
            self._storage.delete(old)

    def finish(self, training: Training) -> None:
        """Keep the trained weights and the records alone."""
        tensors, facts = state_of(training)
        weights = {name: t for name, t in tensors.items() if name.startswith("model.")}
        self._storage.write(FINAL, encode(weights, {**facts, "optimizer": None}))
        for old in self._states():
            self._storage.delete(old)

    def restore(self, training: Training) -> None:
        """Bring a training to the latest state that is whole; leave it at its start if there is none."""
        final = [FINAL] if FINAL in self._storage.names() else []
        for name in [*final, *reversed(self._states())]:
            try:
                tensors, facts = decode(self._storage.read(name))
                apply_state(training, tensors, facts)
            except (Damaged, OSError) as e:
                self._notice(f"checkpoint {name} is damaged ({e}); going back to the one before")
                continue
            if name != FINAL and (changed := _describe_changes(facts)):
                self._notice(f"goes on with {changed}: its weights will not be the same to the last bit")
            return

    def _states(self) -> list[str]:
        return sorted(name for name in self._storage.names() if name.endswith(".safetensors") and name != FINAL)


def _describe_changes(facts: dict[str, Any]) -> str:
    """What sums of floating-point numbers depend on and is not as it was when a state was kept; "" if nothing."""
    changed = [
        f"{name} {value} instead of {facts[name]}"
        for name, value in _surroundings().items()
        if facts.get(name, value) != value
    ]
    return ", ".join(changed)


def _surroundings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "cpu": describe_machine()["cpu"],
        "kernels": origin(),
    }


def state_of(training: Training) -> State:
    """Everything a training is, as tensors by name and as plain facts."""
    optimizer = training.optimizer.state_dict()
    tensors = {f"model.{name}": t for name, t in training.model.state_dict().items()}
    tensors |= {f"best.{name}": t for name, t in training.best.items()}
    numbers: dict[str, Any] = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    if training.progress.predictions:
        tensors["predictions"] = torch.cat(training.progress.predictions)
    facts = {
        "cell": asdict(training.cell),
        "code": TRAINING_CODE[training.cell.precision],
        **_surroundings(),
        "records": training.records,
        "progress": {k: getattr(training.progress, k) for k in ("step", "seconds", "loss_sum")},
        "optimizer": {"groups": optimizer["param_groups"], "numbers": numbers},
    }
    return tensors, facts


def apply_state(training: Training, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Bring a training to a state. Raises Damaged if it is that of another training."""
    if facts["code"] != TRAINING_CODE[training.cell.precision] or not _describes(training.cell, facts["cell"]):
        raise Damaged("it belongs to another training")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        training.model.load_state_dict(weights)
    except RuntimeError as e:
        raise Damaged(str(e)) from e
    if facts["optimizer"] is not None:
        state: dict[int, dict[str, Any]] = {}
        for name, t in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = t
        for name, value in facts["optimizer"]["numbers"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        training.optimizer.load_state_dict({"state": state, "param_groups": facts["optimizer"]["groups"]})
        _lay_out(training.optimizer)
    training.records = facts["records"]
    training.best = {n.removeprefix("best."): t.to(training.device) for n, t in tensors.items() if n[:5] == "best."}
    predictions = [tensors["predictions"].to(training.device)] if "predictions" in tensors else []
    training.progress = Progress(**facts["progress"], predictions=predictions)


def _describes(cell: Cell, facts: dict[str, Any]) -> bool:
    """Whether a state's facts describe this cell; an axis that is newer than the state had its default."""
    try:
        return Cell(**facts) == cell
    except TypeError:  # an axis of a newer version
        return False


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay out what an optimizer keeps for a parameter as the parameter lies, as it was when the training was cut.

    In another order of memory, sums are rounded by other instructions, and the training would not be the same to the
    last bit.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter).copy_(value)


def encode(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """A state as a safetensors file, its facts and a digest of everything in the header."""
    content = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(facts)
    return save(content, {"facts": text, "digest": digest_of(content, text)})


def decode(data: bytes) -> State:
    """The state in a safetensors file. Raises Damaged if it is not what was written."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        text = header["facts"]
        if header["digest"] != digest_of(tensors, text):
            raise Damaged("its digest does not match")
        return tensors, json.loads(text)
    except (SafetensorError, KeyError, ValueError) as e:
        raise Damaged(str(e)) from e


def read_state(path: Path) -> State:
    """The state in a file. Raises Damaged if it is not what was written."""
    try:
        return decode(path.read_bytes())
    except OSError as e:
        raise Damaged(str(e)) from e
