"""What a task of a Ray cluster yields, without Ray: epochs, the end with all notices, and the end of one that hangs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from normlab.study.running import cluster

EPOCH = {"event": "epoch", "record": {"epoch": 1}}
NOTICE = {"event": "notice", "text": "goes on"}
STEP = {"event": "step"}
END = {"event": "end", "status": "done"}


def events_of(said: list[Any], monkeypatch: pytest.MonkeyPatch, stall: float | None) -> list[Any]:
    """The events of a task that says this, and then nothing; a number is a wait of so many seconds."""
    silence = threading.Event()

    def run(facts: Any, threads: int, gpu: bool, plugins: Any, emit: Any) -> None:
        for event in said:
            silence.wait(event) if isinstance(event, float) else emit(event)
        silence.wait(60)

    monkeypatch.setattr(cluster, "_run", run)
    monkeypatch.setattr(cluster, "START", 0.0)
    found = list(cluster._stream({}, 1, False, (), stall))
    silence.set()
    return found


def test_epochs_come_one_by_one_and_notices_with_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = events_of([STEP, NOTICE, EPOCH, STEP, EPOCH, END], monkeypatch, stall=None)
    assert found == [EPOCH, EPOCH, {**END, "notices": ["goes on"]}]


# A hanging cell kept its machine for ever.
def test_one_that_takes_no_step_ends_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    *before, end = events_of([STEP, EPOCH, NOTICE], monkeypatch, stall=0.05)
    assert before == [EPOCH]
    assert (end["event"], end["status"], end["notices"]) == ("end", "failed", ["goes on"])
    assert "no step in 0.05 s" in end["reason"]


def test_one_that_takes_its_time_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert events_of([STEP, 0.01, STEP, 0.01, END], monkeypatch, stall=600.0) == [{**END, "notices": []}]
