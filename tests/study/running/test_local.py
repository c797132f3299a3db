"""What a worker process is given."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normlab.study.keeping.store import Store
from normlab.study.running import local
from normlab.study.running.jobs import Event, Job
from normlab.study.running.local import Layout, LocalExecutor, plan_layout, worker_environment
from normlab.study.running.worker import work
from normlab.study.source import open_data
from normlab.study.spec import DataChoice
from tests.study.conftest import make_cell
from tests.study.processes import alive, network, run


def test_a_worker_has_its_threads_and_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OWN", "1")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = worker_environment(3)
    assert found["OMP_NUM_THREADS"] == found["NUMBA_NUM_THREADS"] == "3"
    assert found["OWN"] == "1"
    assert found["NORMLAB_COMPILING"] == "alone"
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


# Stands for a worker, and starts faster: says what it is told to, and does what the case names.
FAKE = """#!{python}
import json, os, signal, sys, time
sys.stdin.readline()
print(json.dumps({{"event": "epoch", "record": 1}}), flush=True)
{does}
"""
FORKS_AND_DIES = "time.sleep(600) if os.fork() == 0 else os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "time.sleep(600)"
WORKS = (
    'for _ in range(8): time.sleep(0.1), print(json.dumps({"event": "step"}), flush=True)\n'
    'print(json.dumps({"event": "end", "status": "done"}), flush=True)\ntime.sleep(600)'
)


# A worker whose model had forked was killed: the child held the pipe, and the study waited for ever. So it did for a
# model that hangs.
@pytest.mark.parametrize(
    ("does", "last", "why"),
    [
        (FORKS_AND_DIES, "lost", "SIGKILL"),
        (HANGS, "end", "no step in 0.4 s"),
        (WORKS, "end", None),
    ],
)
def test_a_worker_that_dies_or_hangs_is_noticed(
    does: str, last: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "worker"
    fake.write_text(FAKE.format(python=sys.executable, does=does))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    heard: list[Event] = []
    with (tmp_path / "lock").open("w") as lock:
        executor = LocalExecutor(Layout(1, 1), lock=lock.fileno(), logs=tmp_path / "logs", stall=0.4)
        executor.start(Job(1, "key", make_cell(), DataChoice("digits")))
        while not heard or heard[-1]["event"] == "epoch":
            executor.wait(lambda job, event: heard.append(event), 0.05)
        assert [event["event"] for event in heard] == ["epoch", last]
        assert executor.free()
        assert why is None or why in heard[-1]["reason"]
        executor.close()


# trains two steps; the first worker then forks and is killed, the next one hangs
FORKER = network(
    "Forker",
    """
    if self.steps > 2:
        here = Path(__file__).with_name("forked")
        if not here.exists():
            child = os.fork()
            if child == 0:
                time.sleep(600)
            here.write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    """,
)


@pytest.mark.slow
def test_a_study_outlives_a_model_that_forks_and_one_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FORKER)
    model = ("--model", f"{tmp_path / 'nets.py'}:Forker", "--norms", "bn", "--epochs", "1", "--lr", "0.01")
    code, said = run(*model, "--stall", "15s", directory=tmp_path / "study")
    assert code == 1
    assert "SIGKILL" in said
    assert "no step in 15 s" in said
    assert not alive(int((tmp_path / "forked").read_text()))
    with Store(tmp_path / "study", readonly=True) as store:
        (cell,) = store.cells()
    assert cell.traceback is not None
    assert "nets.py" in cell.traceback, "where it hangs"
