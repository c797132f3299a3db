"""Targets that misbehave, for the containment tests; importing this file prints, too."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

print("junk on standard output", "{" * 50)
print("junk on standard error", file=sys.stderr)


class Fine(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("more junk")
        return super().forward(x)


class Raises(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> Any:
        raise ValueError("never again")


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
