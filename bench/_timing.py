"""How things are timed here: in turns within one run, so that a noisy machine is noisy for both sides."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def in_turns(sides: Sequence[Callable[[], object]], rounds: int = 7, budget: float = 0.02) -> list[list[float]]:
    """Milliseconds per call of each side: one figure a round (a median of several calls), sides taking turns."""
    calls = []
    for side in sides:
        side()
        start = time.perf_counter()
        side()
        calls.append(max(3, min(50, int(budget / max(time.perf_counter() - start, 1e-6)))))
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, count, figures in zip(sides, calls, times, strict=True):
            figures.append(1e3 * statistics.median(_once(side) for _ in range(count)))
    return times


def _once(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def keep_memory() -> bool:
    """Ask the C library (glibc) not to hand freed memory back; answers whether it agreed.

    A fresh 8 MB output costs page faults as long as a kernel, and which side meets them is a matter of luck: with this,
    both are timed on memory that the process already has, as in a training loop that has warmed up.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def machine() -> str:
    """The line that stands above every figure: processor, threads, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{names[0]} ({len(names)} cores seen)" if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
