"""Registers normlab's operators with torch as soon as both packages are imported.

A program that `torch.export` saved names its operators; whoever loads it must have them registered. `import torch,
normlab` in either order is enough for that: if torch is there, the operators are registered at once (some 80 ms); if
not, as the last step of its import. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

_OPERATORS = tuple(f"normlab.layers.{name}" for name in ("operators", "position_operators", "masked_operators"))


def register_with_torch() -> None:
    """Register the operators now, or when torch is imported."""
    if sys.modules.get("torch") is not None:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTorch())


def _register() -> None:
    for module in _OPERATORS:
        import_module(module)


class _AfterTorch(MetaPathFinder):
    """Finds torch as the other finders do, once, and registers the operators after its import."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)  # by all the other finders
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec
