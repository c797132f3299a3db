"""What a worker process is given."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normlab.study.running import local
from normlab.study.running.jobs import Event, Job
from normlab.study.running.local import plan_layout, worker_environment
from normlab.study.running.worker import work
from normlab.study.source import open_data
from normlab.study.spec import DataChoice
from tests.study.conftest import make_cell


def test_a_worker_has_its_threads_and_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OWN", "1")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = worker_environment(3)
    assert found["OMP_NUM_THREADS"] == found["NUMBA_NUM_THREADS"] == "3"
    assert found["OWN"] == "1"
    assert found["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert worker_environment(3)["GLIBC_TUNABLES"] == "glibc.malloc.check=1"


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file()
    or "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this system does not give huge pages to whoever asks",
)
def test_a_workers_memory_comes_in_huge_pages() -> None:
    code = (
        "kept = [bytes([i]) * (1 << 23) for i in range(8)]\n"
        "print(sum(int(line.split()[1]) for line in open('/proc/self/smaps') if line.startswith('AnonHugePages')))\n"
    )

    def huge_kilobytes(environment: dict[str, str]) -> int:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    assert huge_kilobytes(worker_environment(1)) > huge_kilobytes({**os.environ, "GLIBC_TUNABLES": ""}) + (16 << 10)


# Images that were overwritten after the driver read them were trained on, under the old key.
@pytest.mark.parametrize("where", ["worker", "ray"])
def test_other_images_than_the_drivers_fail_the_cell(where: str) -> None:
    choice = DataChoice("digits", limit_train=40, limit_eval=20)
    job = Job(1, "key", make_cell(), choice, data_hash="as-the-driver-read")
    heard: list[Event] = []

    class Over(BaseException):
        pass

    def hear(event: Event) -> None:
        heard.append(event)
        raise Over

    if where == "worker":
        jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        jobs.put(job.as_dict())
        with pytest.raises(Over):
            work(jobs, hear, 1, "cpu", [])
    else:
        from normlab.study.running.cluster import _run

        with pytest.raises(Over):
            _run(job.as_dict(), 1, False, (), hear)
    assert heard[0]["status"] == "failed"
    assert "as-the-driver-read" in heard[0]["reason"]
    assert open_data(choice).hash in heard[0]["reason"]


# Less free memory at a resume was another number of threads, and so other weights.
def test_the_layout_depends_on_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(local, "memory_bytes", lambda *pages: asked.append(pages) or 8 << 30)
    layout = plan_layout(10, cores=8)
    assert (layout.jobs, layout.threads) == (4, 2)
    assert asked == [()], "all memory, not what is free of it"
