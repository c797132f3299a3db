"""Studies in processes of their own, and what tests do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from normlab.errors import DataError
from normlab.study.keeping.store import Store

HANGS = 600.0  # seconds; nothing here takes a tenth of them, on any machine: what does hangs
STARTED: list[subprocess.Popen[bytes]] = []  # the fixture `nobody_stays` ends them
# a study that takes seconds: 60 digits, four channels
SMALL = (
    "digits", "--model", "resnet8:width=4", "--limit-train", "60", "--limit-eval", "20", "--batch-size", "8",
    "--seeds", "1",
)  # fmt: skip


def start(*arguments: str, directory: Path, **options: Any) -> subprocess.Popen[bytes]:
    """`normlab compare` on the small study, not waited for."""
    command = [sys.executable, "-m", "normlab", "compare", *SMALL, *arguments, "--no-report", "--out", str(directory)]
    log = directory.parent / f"{directory.name}.log"
    with log.open("ab") as output:
        STARTED.append(subprocess.Popen(command, stdout=output, stderr=output, **options))
    return STARTED[-1]


def run(*arguments: str, directory: Path) -> tuple[int, str]:
    """`normlab compare` on the small study: its exit code, and everything it said."""
    code = start(*arguments, directory=directory).wait(HANGS)
    return code, (directory.parent / f"{directory.name}.log").read_text()


NETWORK = """
import os, signal, time
from pathlib import Path
from textwrap import dedent, indent
from torch import nn

class {name}(nn.Module):
    def __init__(self, norm, num_classes, in_channels):
        super().__init__()
        self.steps = 0
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Conv2d(in_channels, 4, 3), norm(4), nn.Flatten(), nn.Linear(16, num_classes)
        )

    def forward(self, x):
        self.steps += self.training
{does}
        return self.layers(x)
"""


def network(name: str, does: str) -> str:
    """The file of a small network; what it `does` besides may depend on the training steps that it has begun."""
    return NETWORK.format(name=name, does=indent(dedent(does).strip(), 8 * " "))


# an epoch of 8 steps, and it goes on when there is a file
HELD = network(
    "Held",
    """
    while self.steps > 8 and not (Path(__file__).parent / "go-on").exists():
        time.sleep(0.02)
    """,
)


def held(directory: Path) -> tuple[str, str]:
    """Flags for a network that trains one epoch, and goes on after `go_on`, so that no test races with a training."""
    (directory / "nets.py").write_text(HELD)
    return "--model", f"{directory / 'nets.py'}:Held"


def go_on(directory: Path) -> None:
    """Let the networks of `held` train to the end."""
    (directory / "go-on").touch()


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def kill(pid: int) -> None:
    """kill -9, which no process can see coming."""
    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Any) -> Any:
    """Wait for a condition and return its value; fails the test if it does not come true."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not come true in {HANGS:g} s")


def progress(directory: Path, *, unfinished: bool = False) -> dict[int, int]:
    """Epochs recorded of each cell, or of each that is not done; nothing before there is a store."""
    try:
        with Store(directory, readonly=True) as store:
            return {c.id: len(store.epochs(c.id)) for c in store.cells() if not (unfinished and c.status == "done")}
    except DataError:
        return {}


def weights(directory: Path) -> dict[str, dict[str, Tensor]]:
    """The trained weights of every cell, by key."""
    return {path.parent.name: load_file(path) for path in sorted(directory.glob("checkpoints/*/final.safetensors"))}


def results(directory: Path) -> dict[str, Any]:
    """The content of results.json."""
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found
