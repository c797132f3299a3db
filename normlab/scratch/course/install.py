"""Writes a package under an assignment's name whose modules import those of `normlab.scratch.course`."""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from pathlib import Path

from normlab.errors import UsageError, files
from normlab.scratch import course

__all__ = ["install_as"]

MARK = "Written by `normlab scratch install-as`"


def install_as(name: str, folder: str | os.PathLike[str]) -> Path:
    """Writes the package `name` into `folder`, for notebooks that import it from there; returns its path.

    A package that this function wrote before is written again. Raises UsageError if `name` cannot be imported as a
    package, or if something else of that name is there.
    """
    if not name.isidentifier():
        raise UsageError(f"install-as: {name!r} is not a name that can be imported; expected one such as cs231n")
    package = Path(folder) / name
    start = package / "__init__.py"
    if package.exists() and not (start.is_file() and MARK in start.read_text("utf-8")):
        raise UsageError(f"install-as: {package} exists and is not ours; move it away, or choose another folder")
    _write(start, "normlab.scratch.course", names=False)
    prefix = course.__name__ + "."
    for module in pkgutil.walk_packages(course.__path__, prefix):
        if module.name == __name__:
            continue
        parts = module.name.removeprefix(prefix).split(".")
        path = package.joinpath(*parts, "__init__.py") if module.ispkg else package.joinpath(*parts).with_suffix(".py")
        _write(path, module.name, names=hasattr(import_module(module.name), "__all__"))
    return package


def _write(path: Path, module: str, *, names: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'"""{MARK}: stands for `{module}`."""\n'
    if names:
        text += f"\nfrom {module} import *  # noqa: F403\n"
    files.write_text(path, text)
