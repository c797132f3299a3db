"""normlab: a laboratory for normalization layers in deep networks.

Importing this package is cheap: torch, SciPy and Numba load with the first name that needs them. What is public stands
in `__init__.pyi`, and nowhere else.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from normlab._registration import register_with_torch

__version__ = "0.1.0"


def _public() -> dict[str, str]:
    """{public name: the module to import it from}, as the stub beside this file says."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.name: str(statement.module)
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


_PUBLIC = _public()
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'normlab' has no attribute {name!r}")
    home = _PUBLIC[name]
    value = import_module(f"normlab.{name}") if home == "normlab" else _member(home, name)
    globals()[name] = value
    return value


def _member(home: str, name: str) -> Any:
    """A name of a module, or a module of a package that does not import it by itself."""
    module = import_module(home)
    return getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


register_with_torch()
