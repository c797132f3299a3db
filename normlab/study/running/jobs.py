"""What a driver sends out and receives, the same for every place where cells can run."""

from __future__ import annotations

import errno
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from normlab.data import Dataset
from normlab.errors import DataError, NormlabError
from normlab.study.axes import Cell
from normlab.study.keeping.environment import describe_torch
from normlab.study.spec import DataChoice

Event = dict[str, Any]  # {"event": name, ...}; the names are those of `run_job`
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # torch, on GPU and CPU
Emit = Callable[["Job", Event], None]
STALL = 1800.0  # seconds without a step, after which a training has failed
START = 120.0  # seconds, at least, for what comes before the first step
SIGNS = ("reading", "step")  # of life: images are read, a step was taken
_BEAT = 0.5  # seconds between two signs of life


@dataclass(frozen=True)
class Job:
    """One cell to train: its row in the store, its key, what to train on which images, and how far."""

    id: int
    key: str
    cell: Cell
    data: DataChoice
    checkpoints: str | None = None
    until: int | None = None
    data_hash: str = ""  # of the images that the driver read; "" where nobody asks

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for sending."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Job:
        return cls(**{**facts, "cell": Cell(**facts["cell"]), "data": DataChoice(**facts["data"])})


class Executor(Protocol):
    """A place where cells run."""

    def free(self) -> bool:
        """Whether another job can be started now."""

    def start(self, job: Job) -> None:
        """Start a job, whose cell the caller holds."""

    def wait(self, emit: Emit, seconds: float) -> None:
        """Pass on what running jobs report; return when something came, or after `seconds`."""

    def close(self) -> None:
        """Stop everything at once and leave nothing behind."""


def run_job(
    job: Job,
    dataset: Dataset,
    emit: Callable[[Event], None],
    device: str = "cpu",
    kind: Any = None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train a job's cell and report: "notice", "epoch" for each epoch, then "end" or "disk".

    Nothing is raised but what stops the process: a failure is an event with its reason and traceback. `kind` and
    `on_step` are those of `normlab.study.training.cell.train_cell`.
    """
    from normlab.study.keeping.checkpoint import CheckpointDirectory
    from normlab.study.training.cell import train_cell

    def notice(text: str) -> None:
        emit({"event": "notice", "text": text})

    try:
        checkpoints = CheckpointDirectory(job.checkpoints, notice) if job.checkpoints else None
        outcome = train_cell(
            job.cell,
            dataset,
            on_epoch=lambda record: emit({"event": "epoch", "record": record}),
            checkpoints=checkpoints,
            until=job.until,
            device=device,
            kind=kind,
            on_step=on_step,
        )
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a network of the user's own may raise anything, SystemExit included
        emit(failure(job.cell, e))
        return
    emit(
        {
            "event": "end",
            "status": outcome.status,
            "reason": outcome.reason,
            "outcome": {
                "test": outcome.test,
                "parameters": outcome.parameters,
                "backend": outcome.backend,
                "peak_memory_bytes": outcome.peak_memory_bytes,
                "environment": describe_torch(device),
            },
        }
    )


class Beat:
    """Reports a sign of life when called, but not more often than anybody needs."""

    def __init__(self, emit: Callable[[Event], None], sign: str) -> None:
        self._emit, self._sign, self._last = emit, sign, -math.inf

    def __call__(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._last >= _BEAT:
            self._last = now
            self._emit({"event": self._sign})


def stalled(seconds: float, trace: str | None = None) -> Event:
    """The event that says that a cell hangs; `trace` says where."""
    return {
        "event": "end",
        "status": "failed",
        "reason": f"no step in {seconds:g} s: it hangs, or a step takes longer than --stall allows",
        "traceback": trace,
    }


def check_data(job: Job, dataset: Dataset) -> None:
    """Raise DataError if these are not the images that the job was made for: another machine's, or changed since."""
    if job.data_hash and dataset.hash != job.data_hash:
        raise DataError(
            f"the images of {job.data.source} are not those that the study began with: their hash is {dataset.hash} "
            f"here, and {job.data_hash} there; bring the same images to every machine, or begin anew where they changed"
        )


def failure(cell: Cell, error: BaseException) -> Event:
    """The event that says why a cell failed, in words a user can act on, with the traceback kept."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"event": "disk", "reason": f"no space left on the device ({error.filename or 'checkpoint'})"}
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        reason = f"out of memory at batch size {cell.batch_size}"
    elif isinstance(error, NormlabError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {error}"
    return {"event": "end", "status": "failed", "reason": reason, "traceback": trace}
