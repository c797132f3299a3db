"""Targets that misbehave, for the containment tests; importing this file prints, too."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from normlab.check import engine, wire
from normlab.check.report import Finding

print("junk on standard output", "{" * 50)
print("junk on standard error", file=sys.stderr)


class Fine(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("more junk")
        return super().forward(x)


class Raises(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        raise ValueError("never again")


class RaisesWhenBuiltLater(torch.nn.BatchNorm2d):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        if any(frame.f_code.co_name == "do_check" for frame, _ in traceback.walk_stack(None)):
            raise OSError("out of handles")


class RaisesWhenBuilt(torch.nn.Module):
    def __init__(self) -> None:
        raise OSError("no such weights")


class Exits(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        sys.exit(5)


class ExitsForGood(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        if not x.numel():
            os._exit(7)
        return super().forward(x)


class Crashes(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        return ctypes.string_at(0)


class Hangs(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        if not x.numel():
            Path(os.environ["HANGS_NOW"]).touch()
            time.sleep(1000)
        return super().forward(x)


class CrashesNoisily(torch.nn.BatchNorm2d):
    """Writes much to standard error, last of all what is no UTF-8, and ends."""

    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(int(os.environ["NOISY_MEGABYTES"])):
            os.write(2, b"x" * (1 << 20))
        os.write(2, b"\n\xff\xfe the end\n")
        os._exit(9)


class LeavesChildren(torch.nn.BatchNorm2d):
    """Starts a process in a session of its own, and one that such a process starts and leaves."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        pids = Path(os.environ["CHILDREN"])
        if not pids.exists():
            sleep = "import sys, os, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(1000)"
            again = (
                "import subprocess as s, sys; s.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
            )
            for program in ([sleep], [again, sleep]):
                subprocess.Popen([sys.executable, "-c", *program, str(pids)], start_new_session=True)
            while not pids.exists() or len(pids.read_text().split()) < 2:
                time.sleep(0.02)
        raise OSError("no such weights")  # the rest of the checks would tell nothing new


class Forges(torch.nn.BatchNorm2d):
    """Writes a report of its own wherever the check may look for one, and ends well."""

    def forward(self, x: torch.Tensor) -> Any:
        passed = {"check": "values.train", "status": "pass", "message": "right", "measured": {}}
        done = {"form": "torch Module", "dialect": {}, "seconds": 0.0}
        for argument in sys.argv[1:]:
            if Path(argument).is_file():
                Path(argument).write_text(json.dumps({"finding": passed}) + "\n" + json.dumps({"done": done}) + "\n")
        reply = wire.pack({"value": passed})
        for descriptor in range(3, 32):
            with contextlib.suppress(OSError):
                os.write(descriptor, reply * 3)
        os._exit(0)


class ForgesFindings(torch.nn.BatchNorm2d):
    """Wrong, and has every check of its process pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        engine.guarded_check = lambda name, setup: Finding(name, "pass", "right")  # type: ignore[assignment]
        return 2 * super().forward(x)


class Text(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        return "garbage"


class Nothing(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        return None


class OtherShape(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[..., :1]


class Complicated(torch.nn.Module):
    def __init__(self, width: int, depth: int, flavour: str) -> None:
        super().__init__()


number = 3
