"""What a worker process is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.study.running.local import worker_environment


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
