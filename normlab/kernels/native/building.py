"""The C++ part of this backend: built on request, by torch's own tools, and loaded where it has been built.

`normlab build` compiles it, which takes a C++ compiler, ninja and some 40 s of a processor. It is kept with other
extensions of torch (`TORCH_EXTENSIONS_DIR`, or `~/.cache/torch_extensions`) under a name that depends on the sources,
on torch and on Python: what was built for others is never loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from normlab.errors import UsageError
from normlab.kernels import registry

_HERE = Path(__file__).parent
_SOURCE = _HERE / "extension.cpp"  # which includes the others
_NAME = "normlab_native"


@cache
def built() -> Path | None:
    """The built library, or None where there is none for these sources, torch and Python, or none that can be read."""
    with suppress(OSError):  # a home that this user cannot enter
        place = _place()
        if place is not None and place.is_file():
            return place
    return None


@cache
def extension() -> Any:
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

    Raises UsageError where there is no compiler, no ninja, or no folder to write to, on Windows, and where what was
    built does not load.
    """
    if platform.system() == "Windows":
        raise UsageError("normlab build: the C++ part is for Linux and macOS; without it everything works as before")
    try:
        place = _place()
        if place is None:
            raise UsageError("normlab build: there is no home directory; say where in TORCH_EXTENSIONS_DIR")
        if not place.is_file():
            _compile(place)
    except (RuntimeError, OSError, ImportError) as error:
        raise UsageError(
            f"normlab build: {str(error).strip()}\nIt needs a C++ compiler, ninja (pip install ninja) and a folder to "
            "write to (TORCH_EXTENSIONS_DIR); without it everything works as before."
        ) from None
    built.cache_clear()
    extension.cache_clear()
    registry.forget_choices()
    try:
        extension()
    except ImportError as error:
        raise UsageError(
            f"normlab build: {place} does not load ({error}); delete it and build again. Without it everything works "
            "as before."
        ) from None
    return place


def _compile(place: Path) -> None:
    from torch.utils import cpp_extension

    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:  # an interrupted build leaves nothing locked
        cpp_extension.load(_NAME, [str(_SOURCE)], extra_cflags=["-O2"], build_directory=folder, is_python_module=False)
        (made,) = Path(folder).glob(f"{_NAME}*.so")  # torch numbers those of one process
        os.replace(made, place)


def _place() -> Path | None:
    """Where the library is, or would be. Raises OSError if its sources cannot be read."""
    import torch

    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    try:
        root = Path(folder) if folder else Path.home() / ".cache" / "torch_extensions"
    except RuntimeError:
        return None
    facts = (torch.__version__, sys.implementation.cache_tag, platform.machine())
    sources = [_SOURCE, *sorted(_HERE.glob("*.h"))]
    digest = hashlib.sha256(b"".join(v.read_bytes() for v in sources) + repr(facts).encode()).hexdigest()[:16]
    return root / "normlab" / f"{_NAME}-{digest}.so"
