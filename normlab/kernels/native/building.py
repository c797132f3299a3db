"""The C++ part of this backend: built on request, by torch's own tools, and loaded where it has been built.

`normlab build` compiles it, which takes a C++ compiler, ninja and some 40 s of a processor. It is kept with other
extensions of torch (`TORCH_EXTENSIONS_DIR`, or `~/.cache/torch_extensions`) under a name that depends on the source,
on torch and on Python: what was built for others is never loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from normlab.errors import UsageError
from normlab.kernels import registry

_SOURCE = Path(__file__).parent / "normalize.cpp"
_NAME = "normlab_native"


@cache
def built() -> Path | None:
    """The built library, or None where there is none for this source, torch and Python."""
    place = _place()
    return place if place is not None and place.is_file() else None


@cache
def library() -> Any:
    """The C++ part as a module. Raises ImportError if it does not load."""
    import torch  # noqa: F401 - whose libraries it needs

    place = built()
    specification = None if place is None else importlib.util.spec_from_file_location(_NAME, place)
    if specification is None or specification.loader is None:
        raise ImportError("the C++ part of normlab has not been built: run `normlab build`")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build() -> Path:
    """Compile the C++ part, where that has not been done, and return the library.

    Raises UsageError where there is no compiler, no ninja, or no folder to write to.
    """
    place = _place()
    if place is None:
        raise UsageError("normlab build: there is no home directory; say where in TORCH_EXTENSIONS_DIR")
    if not place.is_file():
        from torch.utils import cpp_extension

        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:  # an interrupted build leaves nothing locked
                cpp_extension.load(_NAME, [str(_SOURCE)], extra_cflags=_FLAGS, build_directory=folder)
                os.replace(Path(folder) / f"{_NAME}{place.suffix}", place)
        except (RuntimeError, OSError, ImportError) as error:
            raise UsageError(
                f"normlab build: {str(error).strip()}\nIt needs a C++ compiler and ninja (pip install ninja); without "
                "it everything works as before."
            ) from None
    built.cache_clear()
    library.cache_clear()
    registry.forget_choices()
    return place


_FLAGS = ["/O2"] if sys.platform == "win32" else ["-O2"]


def _place() -> Path | None:
    """Where the library is, or would be."""
    import torch

    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    try:
        root = Path(folder) if folder else Path.home() / ".cache" / "torch_extensions"
    except RuntimeError:
        return None
    facts = (torch.__version__, sys.implementation.cache_tag, platform.machine())
    digest = hashlib.sha256(_SOURCE.read_bytes() + repr(facts).encode()).hexdigest()[:16]
    return root / "normlab" / f"{_NAME}-{digest}{'.pyd' if sys.platform == 'win32' else '.so'}"
