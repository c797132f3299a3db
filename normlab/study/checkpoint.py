"""The state of a training on disk: safetensors with a JSON header; a power cut leaves the old or the new.

A state is written to a temporary file, synced, renamed, and the directory synced; the two latest are kept, each
with a digest of its content, so that a damaged one is noticed and the one before taken. Loading parses numbers
and JSON and executes nothing.

Nothing about random generators is in it: every random choice of a training is a function of its seed and of the
position (`normlab.study.cell`), and the position is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from normlab.study.cell import Progress, Training
from normlab.study.spec import TRAINING_CODE

FINAL = "final.safetensors"
KEPT = 2
EVERY_SECONDS = 600.0  # within an epoch

State = tuple[dict[str, Tensor], dict[str, Any]]


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class CheckpointDirectory:
    """The checkpoints of one cell. `notice` hears what a user should know about a resumed training."""

    def __init__(self, directory: Path, notice: Callable[[str], None], every_seconds: float = EVERY_SECONDS) -> None:
        self.directory, self._notice, self._every = directory, notice, every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is long since the last state was kept."""
        return time.monotonic() - self._last > self._every

    def keep(self, training: Training) -> None:
        """Keep the whole state; of the earlier ones, the latest stays."""
        name = f"{len(training.records):06d}-{training.progress.step:08d}.safetensors"
        write_state(self.directory / name, *state_of(training))
        self._last = time.monotonic()
        for old in self._states()[:-KEPT]:
            old.unlink(missing_ok=True)

    def finish(self, training: Training) -> None:
        """Keep the trained weights and the records alone."""
        tensors, facts = state_of(training)
        weights = {name: t for name, t in tensors.items() if name.startswith("model.")}
        write_state(self.directory / FINAL, weights, {**facts, "optimizer": None})
        for old in self._states():
            old.unlink(missing_ok=True)

    def restore(self, training: Training) -> None:
        """Bring a training to the latest state that is whole; leave it at its start if there is none."""
        final = self.directory / FINAL
        for path in [*([final] if final.exists() else []), *reversed(self._states())]:
            try:
                apply_state(training, *read_state(path))
            except Damaged as e:
                self._notice(f"checkpoint {path.name} is damaged ({e}); going back to the one before")
                continue
            return

    def _states(self) -> list[Path]:
        return sorted(p for p in self.directory.glob("*.safetensors") if p.name != FINAL)


def state_of(training: Training) -> State:
    """Everything a training is, as tensors by name and as plain facts."""
    optimizer = training.optimizer.state_dict()
    tensors = {f"model.{name}": t for name, t in training.model.state_dict().items()}
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
        "code": TRAINING_CODE,
        "threads": torch.get_num_threads(),
        "records": training.records,
        "progress": {k: getattr(training.progress, k) for k in ("step", "seconds", "loss_sum")},
        "optimizer": {"groups": optimizer["param_groups"], "numbers": numbers},
    }
    return tensors, facts


def apply_state(training: Training, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Bring a training to a state. Raises Damaged if it is that of another training."""
    if facts["cell"] != asdict(training.cell) or facts["code"] != TRAINING_CODE:
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
    training.records = facts["records"]
    predictions = [tensors["predictions"].to(training.device)] if "predictions" in tensors else []
    training.progress = Progress(**facts["progress"], predictions=predictions)


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state to `path`: afterwards the file is whole and there, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(facts)
    data = save(content, {"facts": text, "digest": _digest(content, text)})
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def read_state(path: Path) -> State:
    """The state in a file. Raises Damaged if it is not what was written."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text = header["facts"]
        if header["digest"] != _digest(tensors, text):
            raise Damaged("its digest does not match")
        return tensors, json.loads(text)
    except (SafetensorError, KeyError, ValueError, OSError) as e:
        raise Damaged(str(e)) from e


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
