"""While kernels are compiled a line says so, once, and a second process begins at the other end of what is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from normlab.kernels.runtime import beside
from normlab.kernels.runtime.beside import LINE, PATIENCE, Compiling
from normlab.kernels.runtime.needed import Need
from normlab.kernels.runtime.parts import Part

compiled: list[tuple[Any, ...]] = []


def kernel(*arguments: Any) -> int:
    compiled.append(arguments)
    return 1


def need(*arguments: Any) -> Need:
    return Need(__name__, "kernel", arguments)


class Timer:
    """A clock that strikes when it is told to."""

    waiting: ClassVar[list[Timer]] = []

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.seconds, self.strike = seconds, function

    def start(self) -> None:
        self.waiting.append(self)

    def cancel(self) -> None:
        self.waiting.remove(self)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Compiling:
    monkeypatch.delenv("NORMLAB_COMPILING")
    monkeypatch.setattr(beside, "available_cores", lambda: 2)
    return Compiling(Timer)


def test_two_seconds_of_compiling_are_said_once(compiling: Compiling, capsys: pytest.CaptureFixture[str]) -> None:
    with compiling.one():
        (first,) = Timer.waiting
        with compiling.one():  # a function inside
            assert Timer.waiting == [first]
        assert first.seconds == PATIENCE
        assert capsys.readouterr().err == ""
        first.strike()
    assert capsys.readouterr().err == LINE + "\n"
    assert not Timer.waiting
    with compiling.one():
        (second,) = Timer.waiting
        assert second.seconds < PATIENCE, "what was compiled before counts"
        second.strike()
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_a_process_compiles_alone(
    compiling: Compiling, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    monkeypatch.setenv("NORMLAB_COMPILING", "alone")
    with compiling.expecting([need(1), need(2)]), compiling.one():
        assert not Timer.waiting
    assert not started


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of processes, none of which starts."""
    commands = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], **rest: Any) -> None:
            assert env["NORMLAB_COMPILING"] == "alone"
            commands.append(command)

        def poll(self) -> None: ...
        def kill(self) -> None: ...
        def wait(self) -> None: ...

    monkeypatch.setattr(subprocess, "Popen", Process)
    return commands


def test_a_second_process_compiles_what_is_expected(compiling: Compiling, started: list[list[str]]) -> None:
    needed = [need("float32", True), need(3)]
    with compiling.expecting(needed):
        assert not started, "all of it may be on disk"
        with compiling.one():
            pass
    with compiling.expecting(needed), compiling.one():  # the first one still works
        pass
    ((executable, _, module, names),) = started
    assert (executable, module) == (sys.executable, "normlab.kernels.runtime.beside")
    compiled.clear()
    beside.main(names)
    assert compiled == [("float32", True), (3,)]


@pytest.mark.parametrize(("cores", "kernels"), [(1, 3), (2, 1), (2, 0)])
def test_no_process_starts_where_it_cannot_help(
    cores: int, kernels: int, compiling: Compiling, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "available_cores", lambda: cores)
    with compiling.expecting([need(i) for i in range(kernels)]), compiling.one():
        assert not started


def test_the_second_process_runs() -> None:
    command = [sys.executable, "-m", beside.__name__, json.dumps([["builtins", "print", ["here"]]])]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout == "here\n"


def test_a_part_is_not_for_python() -> None:
    from numba import njit

    @njit(pipeline_class=Part)
    def part(x: Any) -> Any:
        return x + 1

    @njit
    def whole(x: Any) -> Any:
        return part(x) * 2

    assert whole(3) == 8
    with pytest.raises(KeyError):
        part(3)
