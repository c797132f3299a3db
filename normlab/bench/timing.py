"""How things are timed: in turns within one run, so that a noisy machine is noisy for every side."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

Side = Callable[[], object]


def in_turns(
    sides: Sequence[Side], rounds: int = 7, budget: float = 0.02, device: str = "cpu", most: int = 50
) -> list[list[float]]:
    """Milliseconds per call of each side: one figure a round, sides taking turns.

    A round's figure is the median of as many calls as fill `budget` seconds (at least one, at most `most`); on a CUDA
    device it is the mean of calls in a row between two events, so that the launches overlap with the work as they do
    in training. Every side is called twice before, to compile and to meet its memory.
    """
    once = partial(_on_cuda, device) if device.startswith("cuda") else milliseconds
    calls = []
    for side in sides:
        side()
        seconds = once(side, 1) / 1e3
        calls.append(max(1, min(most, int(budget / max(seconds, 1e-6)))))
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, count, figures in zip(sides, calls, times, strict=True):
            figures.append(once(side, count))
    return times


def shortest(repeats: int, *sides: Side) -> list[float]:
    """Milliseconds of the shortest of `repeats` calls of each side, sides taking turns."""
    return [min(figures) for figures in in_turns(sides, repeats, budget=0)]


def milliseconds(side: Side, count: int = 1) -> float:
    """The median milliseconds of `count` calls."""
    figures = []
    for _ in range(count):
        start = time.perf_counter()
        side()
        figures.append(time.perf_counter() - start)
    return 1e3 * statistics.median(figures)


def _on_cuda(device: str, side: Side, count: int) -> float:
    with torch.cuda.device(device):  # events belong to a device's stream: that of the work, not the first one's
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            side()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / count


def keep_memory() -> bool:
    """Ask the C library (glibc) not to hand freed memory back; return whether it agreed.

    A fresh 8 MB output costs page faults as long as a kernel, and which side meets them is a matter of luck: with this,
    both are timed on memory that the process already has, as in a training loop that has warmed up.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
