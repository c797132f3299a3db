"""Times functions side by side, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def best_of(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """The shortest of `repeats` calls of each function, in seconds, taken in turn after a warm-up of each."""
    for function in functions:
        function()
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best
