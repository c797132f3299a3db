"""Cells in this very process, one at a time: for tests, notebooks and debuggers."""

from __future__ import annotations

from normlab.data import Dataset
from normlab.study.running.jobs import Emit, Job, run_job


class InlineExecutor:
    """Runs each job when waited for. Events come while it trains; an interrupt comes through as raised."""

    def __init__(self, dataset: Dataset, device: str = "cpu") -> None:
        self._dataset, self._device = dataset, device
        self._job: Job | None = None

    def free(self) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self, emit: Emit, seconds: float) -> None:
        if self._job is None:
            return
        job, self._job = self._job, None
        run_job(job, self._dataset, lambda event: emit(job, event), self._device)

    def close(self) -> None:
        self._job = None
