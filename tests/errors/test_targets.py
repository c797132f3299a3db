"""Code of the user's own, by name: every command takes every form, and says what is wrong in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from normlab.cli import main
from normlab.errors import NormlabError, UsageError, targets

ROOT = str(Path(__file__).resolve().parents[2])
NET = """
from torch import nn
from own_parts import width

def net(norm=None, num_classes=10, in_channels=3):
    norm = norm or nn.BatchNorm2d
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, bias=False), norm(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )

def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

def forward(x, gamma, beta, eps=1e-5):
    return x

class Nested:
    layer = nn.LayerNorm
"""
GRID = """
from normlab import register_norm
from normlab.norms.grid import standardize

@register_norm("registered-{n}")
def registered(m, p):
    return standardize(m.pool("c"), p)

def plain_{n}(m, p):
    return standardize(m, p)

number = 3
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def forms(workplace: Path) -> dict[str, str]:
    """The ways to name a file of nets, without `:name`."""
    folder = workplace / "package_of_own"
    folder.mkdir()
    for place in (workplace, folder):
        (place / "own_nets.py").write_text(NET)
        (place / "own_parts.py").write_text("width = 4\n")
    (folder / "__init__.py").touch()
    (folder / "own_nets.py").write_text(NET.replace("own_parts", "package_of_own.own_parts"))
    return {
        "module": "own_nets",
        "package": "package_of_own.own_nets",
        "file": "own_nets.py",
        "here": "./own_nets.py",
        "below": "package_of_own/own_nets.py",
        "absolute": str(workplace / "own_nets.py"),
        "dots": f"../{workplace.name}/own_nets.py",
    }


FORMS = ("module", "package", "file", "here", "below", "absolute", "dots")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and both streams, of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def check_here(target: str) -> dict[str, object]:
    """The first thing that the process of `normlab check` reports of a target, without starting it."""
    from normlab.check.subjects import load

    try:
        found, _, name = load(target)
    except NormlabError as e:
        return {"usage": str(e), "code": e.exit_code}
    return {"name": name, "found": found}


# `--model own_nets.py:net` imported a package named own_nets; `./own_nets.py:net` was called a bug in normlab
@pytest.mark.parametrize("form", FORMS)
def test_every_command_takes_every_form(
    form: str, forms: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from normlab.bench import model as bench_model
    from normlab.study.running import overview

    monkeypatch.setattr(overview, "estimate_seconds", lambda cells, *_: [1.0] * len(cells))
    place = forms[form]
    plan = ("plan", "digits", "--limit-train", "40", "--limit-eval", "20", "--norms", "bn", "--epochs", "1")
    code, said = run(capsys, *plan, "--model", f"{place}:net")
    assert code == 0, said
    assert "1 to do" in said
    code, said = run(capsys, "lint", f"{place}:tiny")
    assert code == 0, said
    assert check_here(f"{place}:forward")["name"] == "forward"
    assert check_here(f"{place}:Nested.layer")["name"] == "Nested.layer"
    assert len(list(bench_model.load(f"{place}:net", (2, 3, 8, 8)).modules())) == 7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["", ":registered", ":plain_{n}"])
def test_a_plug_in_takes_every_form(form: str, name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normlab.norms import family
    from normlab.study.running.run import check_names
    from normlab.study.spec import make_spec

    monkeypatch.setattr(family, "_REGISTRY", dict(family._REGISTRY))
    n = f"{form}{len(name)}"
    folder = workplace / f"plugins_{n}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for place in (workplace, folder):
        (place / f"own_{n}.py").write_text(GRID.format(n=n))
    place = {
        "module": f"own_{n}",
        "package": f"plugins_{n}.own_{n}",
        "file": f"own_{n}.py",
        "here": f"./own_{n}.py",
        "below": f"plugins_{n}/own_{n}.py",
        "absolute": str(workplace / f"own_{n}.py"),
        "dots": f"../{workplace.name}/own_{n}.py",
    }[form]
    norm = f"plain_{n}" if "plain" in name else f"registered-{n}"
    check_names(make_spec({"norms": norm, "plugin": place + name.format(n=n)}))  # as every command begins
    assert norm in family.norm_names()


COMMANDS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "--model": lambda target: ("plan", "digits", "--model", target),
    "--plugin": lambda target: ("plan", "digits", "--plugin", target),
    "lint": lambda target: ("lint", target),
    "bench": lambda target: ("bench", "--model", target, "--input", "2,3,8,8"),
    "check": lambda target: ("check", target),
}
BROKEN = {
    "raises.py": "import math\n\n\ndef f():\n    return no_such_name\n\n\nf()\n",
    "syntax.py": "def f(:\n",
    "missing.py": "import no_such_dependency\n",
    "leaves.py": "import sys\nsys.exit(0)\n",
    "leaves_at_once.py": "import os\nos._exit(0)\n",
    "right.py": "value = 3\n",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("nowhere.py:f", 2, "there is no file nowhere.py"),
        ("./nowhere.py:f", 2, "there is no file ./nowhere.py"),
        ("no_such_module:f", 2, "there is no module 'no_such_module'"),
        ("right.nothing:f", 2, "there is no module 'right.nothing'"),
        ("right.py:f", 2, "has no 'f'; it has value"),
        ("right.py:value.f", 2, "has no 'f'"),
        ("raises.py:f", 2, "raised NameError: name 'no_such_name' is not defined"),
        ("raises:f", 2, "raises.py, line 5"),
        ("syntax.py:f", 2, "syntax.py, line 1"),
        ("missing.py:f", 2, "No module named 'no_such_dependency'"),
        ("./right:f", 2, "is not a Python file"),
        ("right nets:f", 2, "expected package.module:name or file.py:name"),
        # a plug-in that left with status 0 ended the command with exit code 0, nothing done
        ("leaves.py:f", 3, "leaves.py ended the process while it was imported (exit status 0)"),
        ("leaves_at_once.py:f", 3, "leaves_at_once.py ended the process while it was imported (exit status 0)"),
    ],
)
def test_what_is_wrong_is_said_alike_by_every_command(
    command: str, target: str, code: int, words: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in BROKEN.items():
        (workplace / name).write_text(text)
    if command == "check":
        said = check_here(target)
        found, message = said["code"], str(said["usage"])
    else:
        found, message = run(capsys, *COMMANDS[command](target))
    assert found == code, message
    assert words in message
    assert target in message
    assert "Traceback" not in message
    assert "bug in normlab" not in message


LEAVING = """
import os
import sys
from torch import nn

class Odd(BaseException):
    pass

class Leaves(nn.Sequential):
    def forward(self, x):
        {forward}
        return super().forward(x)

def net(norm=nn.BatchNorm2d, num_classes=10, in_channels=1):
    {factory}
    return Leaves(nn.Conv2d(in_channels, 4, 3), norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""


# a network that left with status 0 when it was made or called ended the command with exit code 0, nothing done
@pytest.mark.parametrize("command", ["compare", "lint", "bench"])
@pytest.mark.parametrize("where", ["factory", "forward"])
@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "exit()"])
def test_a_network_that_ends_the_process_is_a_failure_that_names_it(
    leave: str, where: str, command: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "leaving.py").write_text(LEAVING.format(**{"factory": "pass", "forward": "pass", where: leave}))
    given = {
        "compare": ("digits", "--model", "leaving.py:net", "--out", "study"),
        "lint": ("leaving.py:net", "--input", "1,8,8"),
        "bench": ("--model", "leaving.py:net", "--input", "2,1,8,8"),
    }
    before = os._exit
    code, said = run(capsys, command, *given[command])
    assert code == (2 if command == "lint" and where == "factory" else 3), said  # where it is one error among others
    assert "leaving.py" in said
    assert "Traceback" not in said
    assert os._exit is before


@pytest.mark.parametrize("where", ["factory", "forward"])
def test_a_network_may_raise_anything(where: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "odd.py").write_text(LEAVING.format(**{"factory": "pass", "forward": "pass", where: "raise Odd('!')"}))
    code, said = run(capsys, "compare", "digits", "--model", "odd.py:net", "--out", "study")
    assert (code, "raised Odd" in said, "Traceback" in said) == (2, True, False), said


# a handler that runs when Python ends made a success of any failure
def test_code_that_runs_at_the_end_does_not_change_the_exit_code(workplace: Path) -> None:
    (workplace / "late.py").write_text("import atexit, os\natexit.register(os._exit, 0)\n")
    command = [sys.executable, "-m", "normlab", "norms", "--plugin", "late.py:nothing"]
    ended = subprocess.run(
        command, cwd=workplace, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ROOT}
    )
    assert ended.returncode == 2, ended.stderr
    assert "late has no 'nothing'" in ended.stderr


# a process that a plug-in forked, and that did not leave, ran the command a second time
def test_a_process_that_code_forks_does_not_go_on_with_the_command(workplace: Path) -> None:
    (workplace / "copies.py").write_text("import os\npid = os.fork()\n")
    pid = targets.load("copies.py:pid", "TARGET")
    assert pid > 0, "this is the copy"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("command", ["--model", "lint", "bench", "check"])
@pytest.mark.parametrize("target", ["right.py", "./right.py", "right.py:", r"C:\nets.py"])
def test_a_target_needs_a_name(command: str, target: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "right.py").write_text("value = 3\n")
    code, said = run(capsys, *COMMANDS[command](target)) if command != "check" else (2, check_here(target)["usage"])
    assert code == 2, said
    assert "file.py:name" in str(said)


@pytest.mark.parametrize("command", ["--model", "--plugin", "lint"])
def test_a_thing_of_another_kind(command: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "right.py").write_text("value = 3\n")
    code, said = run(capsys, *COMMANDS[command]("right.py:value"))
    assert code == 2, said
    assert "int" in said


def test_the_process_of_check_passes_on_what_is_wrong_and_how(workplace: Path) -> None:
    from normlab.check.worker import Server

    for name, text in BROKEN.items():
        (workplace / name).write_text(text)
    for target, code in (("raises.py:f", 2), ("leaves.py:f", 3)):
        reply = Server({"target": target, "kind": None}).reply({"op": "load", "given": {}})
        assert (reply["raised"], reply["code"]) == ("usage", code)
        assert target in reply["said"]


def test_a_file_is_run_once_however_it_is_named(workplace: Path) -> None:
    (workplace / "counted.py").write_text(
        "import builtins\nbuiltins.times_run = getattr(builtins, 'times_run', 0) + 1\nrun = builtins.times_run\n"
    )
    (workplace / "user.py").write_text("import counted\nrun = counted.run\n")
    for target in (
        "counted.py:run",
        "./counted.py:run",
        "counted:run",
        str(workplace / "counted.py") + ":run",
        "user.py:run",
    ):
        assert targets.load(target, "TARGET") == 1


@pytest.mark.parametrize("name", ["json.py", "torch.py", "my-nets.py", "3d.py", "__main__.py", "class.py"])
def test_the_name_of_a_file_may_be_taken_or_no_name(name: str, workplace: Path) -> None:
    import torch  # noqa: F401

    (workplace / name).write_text("from dataclasses import dataclass\n\n@dataclass\nclass Mine:\n    x: int = 3\n")
    assert targets.load(f"{name}:Mine", "TARGET")().x == 3
    assert targets.load(f"./{name}:Mine", "TARGET") is targets.load(f"{name}:Mine", "TARGET")
    assert json.dumps([1]) == "[1]"


def test_a_module_that_raised_is_imported_anew(workplace: Path) -> None:
    for name in ("again", "an-other"):
        (workplace / f"{name}.py").write_text("raise ValueError('not\\nyet')\n")
        with pytest.raises(UsageError, match=r"raised ValueError: not yet \(.*, line 1\)"):
            targets.load(f"{name}.py:x", "TARGET")
        (workplace / f"{name}.py").write_text("x = 'ready now'\n")
        assert targets.load(f"{name}.py:x", "TARGET") == "ready now"


def test_code_may_start_processes_that_leave(workplace: Path) -> None:
    (workplace / "forks.py").write_text(
        "import os\npid = os.fork()\nif pid == 0:\n    os._exit(7)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
    )
    leave = os._exit
    assert targets.load("forks.py:status", "TARGET") == 7
    assert os._exit is leave


def test_a_file_of_a_package_may_import_from_it(workplace: Path) -> None:
    inner = workplace / "outer_of_own" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").touch()
    (inner.parent / "parts.py").write_text("width = 5\n")
    (inner / "nets.py").write_text("from ..parts import width\nfrom outer_of_own.parts import width as same\n")
    assert targets.load("outer_of_own/inner/nets.py:width", "TARGET") == 5
    assert targets.load(f"{inner}/nets.py:same", "TARGET") == 5
