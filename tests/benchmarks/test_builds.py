"""Two checkouts beside each other: what the bench counts as slower, and that two processes take turns."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.builds.__main__ import ROOT, main, measure
from normlab.bench.work import Work


class Steady:
    """A build whose turns take what they are given."""

    def __init__(self, *times: float) -> None:
        self.times, self.asked = times, 0

    def prepare(self, work: Work) -> None:
        self.asked = 0

    def turn(self) -> float:
        self.asked += 1
        return self.times[(self.asked - 1) % len(self.times)]


def test_a_ratio_is_the_median_of_the_rounds_and_a_round_the_best_of_its_turns() -> None:
    before: Any = Steady(2.0, 1.0, 3.0)
    now: Any = Steady(1.5, 9.0, 8.0)
    assert measure(before, now, Work("bn", (2, 4, 2, 2)), rounds=5) == (1.0, 1.5, 1.5)
    assert before.asked == now.asked == 15


@pytest.mark.slow
def test_a_checkout_beside_itself(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(ROOT), "--norms", "layernorm", "--shapes", "4x8", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert re.search(r"^layernorm +norm +4x8 +channels_first +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.M)
    assert "over 3 rows" in printed
