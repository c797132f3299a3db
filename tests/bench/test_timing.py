"""Sides take turns, and a round has one figure for each."""

from __future__ import annotations

import itertools
import time

import pytest

from normlab.bench.timing import in_turns


def test_sides_take_turns() -> None:
    calls: list[str] = []
    found = in_turns([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, budget=0)
    assert [len(figures) for figures in found] == [3, 3]
    # two calls of each to warm up, then one a round
    assert "".join(calls) == "aabb" + "ab" * 3


def test_a_round_is_filled_with_calls_up_to_a_number() -> None:
    calls: list[int] = []
    in_turns([lambda: calls.append(0)], rounds=2, budget=10, most=5)
    assert len(calls) == 2 + 2 * 5


def test_figures_are_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second between two looks
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert in_turns([lambda: None], rounds=1, budget=0) == [[1000.0]]
