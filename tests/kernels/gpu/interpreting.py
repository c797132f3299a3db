"""Triton as the tests take it: on a CUDA device if there is one, else in its interpreter on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":  # read when triton, and when a kernel, is defined
        patch.setenv("TRITON_INTERPRET", "1")
    # the interpreter of older ones fails with NumPy 2.4; their compiler serves
    needed = {"minversion": "3.7"} if DEVICE == "cpu" else {}
    missing = "no triton whose interpreter works with this NumPy (3.7 or later): its kernels are NOT tested here"
    triton = pytest.importorskip("triton", reason=missing, **needed)
    from normlab.kernels.gpu import _cut as cut
    from normlab.kernels.gpu import _kernels as kernels
    from normlab.kernels.gpu import _position_kernels as position_kernels
    from normlab.kernels.gpu import _programs as programs
    from normlab.kernels.gpu import planes as triton_gpu
    from normlab.kernels.gpu import positions as triton_positions

__all__ = [
    "DEVICE",
    "cut",
    "interpret",
    "kernels",
    "mistaken",
    "position_kernels",
    "programs",
    "triton",
    "triton_gpu",
    "triton_positions",
]


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Where there is no device, have what is still to be defined interpreted too."""
    if DEVICE == "cpu":
        assert triton_gpu.INTERPRETED, "the kernels were loaded before the tests could ask for the interpreter"
        patch.setenv("TRITON_INTERPRET", "1")
        replace_language_once_in_a_launch(patch)


def replace_language_once_in_a_launch(patch: pytest.MonkeyPatch) -> None:
    """Triton's language is replaced when a kernel starts, and once more whenever it calls a function: half the time."""
    from triton.runtime import interpreter

    replaced: set[int] = set()

    def launch(executor: Any, *args: Any, original: Callable = interpreter.GridExecutor.__call__, **named: Any) -> None:
        replaced.clear()
        original(executor, *args, **named)

    def replace(function: Any, original: Callable = interpreter._patch_lang) -> Any:
        if id(function.__globals__) in replaced:
            return interpreter._LangPatchScope()  # nothing to restore
        replaced.add(id(function.__globals__))
        return original(function)

    patch.setattr(interpreter.GridExecutor, "__call__", launch)
    patch.setattr(interpreter, "_patch_lang", replace)


def mistaken(module: ModuleType, right: str, wrong: str, folder: Path) -> ModuleType:
    """The module of kernels with a mistake written into its text."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    assert right in text
    path = folder / "mistaken.py"
    path.write_text(text.replace(right, wrong))
    spec = spec_from_file_location("mistaken", path)
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
