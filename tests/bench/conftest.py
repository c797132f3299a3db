"""Times as a test wants them: what is measured is a matter of the machine, what becomes of it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from normlab.bench import layers

Turns = Callable[[Sequence[float]], None]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """`timed([copy, eager, ours])`: every round of every row takes so many milliseconds."""

    def set_times(times: Sequence[float]) -> None:
        def in_turns(sides: Sequence[Any], rounds: int, device: str) -> list[list[float]]:
            for side in sides:
                side()  # what is timed must run
            return [[time] * rounds for time, _ in zip(times, sides, strict=True)]

        monkeypatch.setattr(layers, "in_turns", in_turns)

    return set_times
