"""A study whose cells are trained by several processes together: the ones that torchrun started.

    torchrun --nproc-per-node 2 -m normlab compare ./photos --model mynets:large

The first process leads: it is the study's driver, alone with the store and the terminal. The others follow: they
train what the leader hands out, one cell at a time, and write nothing. Each works on its share of every batch
(`normlab.study.running.shared`). When a process fails, the run ends: the others may be waiting for it, and torchrun
ends them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.study.running.jobs import Emit, Event, Job, check_data, run_job
from normlab.study.source import open_data
from normlab.study.spec import StudySpec

if TYPE_CHECKING:
    from normlab.study.training.cell import Checkpoints, Training

_GRACE_SECONDS = 5.0  # for the leader to write down the failure that its follower met as well
_WAIT = timedelta(days=1)  # for the leader, who may be waiting for cells in other hands


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this process is one of several, and not the first."""
    return launched() and os.environ["RANK"] != "0"


class LeadingExecutor:
    """Runs each job when waited for, in this process and its followers together."""

    def __init__(self, spec: StudySpec, dataset: Dataset, devices: Sequence[str]) -> None:
        self._dataset, self._device = dataset, _join(spec, devices)
        self._job: Job | None = None
        self._in_step = True  # whether the followers wait for a job

    def free(self) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self._job, self._in_step = job, False
        _broadcast(job.as_dict())

    def wait(self, emit: Emit, seconds: float) -> None:
        from normlab.study.running.shared import SharedTraining

        if self._job is None:
            return
        job, self._job = self._job, None

        def handle(event: Event) -> None:
            self._in_step = event["event"] == "end" and event["status"] != "failed"
            emit(job, event)

        run_job(job, self._dataset, handle, self._device, SharedTraining)

    def close(self) -> None:
        if self._in_step:
            self._in_step = False
            _broadcast(None)
            _leave_group()


def follow(spec: StudySpec, devices: Sequence[str]) -> None:
    """Train with the leader whatever it hands out, until it is done."""
    from normlab.study.keeping.checkpoint import CheckpointDirectory
    from normlab.study.running.shared import SharedTraining
    from normlab.study.training.cell import train_cell

    dataset = open_data(spec.data_choice())
    device = _join(spec, devices)
    while (facts := _broadcast(None)) is not None:
        job = Job.from_dict(facts)
        kept = CheckpointDirectory(job.checkpoints, lambda text: None) if job.checkpoints else None
        try:
            check_data(job, dataset)
            train_cell(
                job.cell,
                dataset,
                checkpoints=kept and _ReadOnly(kept),
                until=job.until,
                device=device,
                kind=SharedTraining,
            )
        except Exception:
            time.sleep(_GRACE_SECONDS)
            raise
    _leave_group()


class _ReadOnly:
    """Checkpoints that the leader keeps."""

    def __init__(self, kept: Checkpoints) -> None:
        self.restore = kept.restore

    def due(self) -> bool:
        return False

    def keep(self, training: Training) -> None:
        pass

    def finish(self, training: Training) -> None:
        pass


def _join(spec: StudySpec, devices: Sequence[str]) -> str:
    """Join the other processes; returns this one's device. Raises UsageError if there are not enough GPUs."""
    import torch
    import torch.distributed as dist

    from normlab.layers.norms import make_norm
    from normlab.study.running.shared import check_synchronizable

    local, of_machine = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = "cpu"
    if devices[0] != "cpu":
        if len(devices) < of_machine:
            raise UsageError(
                f"torchrun started {of_machine} processes on this machine for {len(devices)} GPUs; "
                f"expected one each: --nproc-per-node {len(devices)}, or --device cpu"
            )
        device = devices[local]
        torch.cuda.set_device(device)
    for norm in spec.norms:
        check_synchronizable(make_norm(norm, 64), device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_WAIT)
    return device


def _broadcast(facts: Any) -> Any:
    """The leader's facts, in every process."""
    import torch.distributed as dist

    message = [facts]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def _leave_group() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()
