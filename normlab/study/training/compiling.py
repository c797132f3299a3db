"""A network compiled by torch for its training steps.

What follows from another is fused, and on a GPU a step is recorded as a CUDA graph and played back, so that a small
network does not wait for its launches. Evaluation is not compiled.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from os import environ
from typing import Any

import torch
from torch import nn

from normlab.errors import UsageError


def compiled(model: nn.Module, device: torch.device) -> Any:
    """The model as training calls it, `begin_step` before every step; compiled at the first call for each batch size.

    Raises UsageError as `check_compiler`.
    """
    check_compiler(device.type)
    forget_compiled()
    # our layers are opaque to the compiler, and have fused what follows them already
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)


def forget_compiled() -> None:
    """Forget what was compiled before: after eight variants of one function, torch.compile gives up on it."""
    torch.compiler.reset()


def begin_step(device: torch.device) -> None:
    """Say that what the last step put out is not needed any more: a CUDA graph writes it anew."""
    if device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()


def check_compiler(device: str) -> None:
    """Raise UsageError unless torch.compile has what it needs here: a C++ compiler, and on a GPU Triton."""
    names = [environ["CXX"]] if "CXX" in environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise UsageError(f"--compile needs a C++ compiler ({' or '.join(names)} on the PATH); install one, or leave it")
    if device.startswith("cuda") and find_spec("triton") is None:
        raise UsageError("--compile on a CUDA device needs triton; install it, or leave --compile out")
