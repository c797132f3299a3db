"""Stand-ins for what drives and for what trains."""

from __future__ import annotations

from typing import Any

from normlab.study.running.jobs import Job


class Silent:
    """Hears everything, says nothing."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def expect(self, cells: int, done: int) -> None: ...
    def started(self, job: Job) -> None: ...
    def epoch(self, job: Job, record: dict[str, Any]) -> None: ...
    def ended(self, job: Job, status: str, reason: str | None) -> None: ...
    def data(self, done: int, total: int, what: str) -> None: ...
    def notice(self, text: str) -> None:
        self.notices.append(text)

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class Scripted:
    """An executor that answers each job with events from a function."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.job, self.jobs = answer, None, []

    def free(self) -> bool:
        return self.job is None

    def start(self, job: Job) -> None:
        self.job = job
        self.jobs.append(job.id)

    def wait(self, emit: Any, seconds: float) -> None:
        job, self.job = self.job, None
        for event in self.answer(job):
            emit(job, event)

    def close(self) -> None: ...
