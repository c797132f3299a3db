"""How kernels are compiled, and that what is cached on disk belongs to the source that is here.

Numba recompiles a function when its own file has changed, but not when a function that it calls has changed in another
file. So compiled code is thrown away whenever any source that kernels are made of is not the one it was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit

# sums may be reordered, so that they vectorize; NaN and infinity keep their meaning
compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


def discard_stale(place: Path, sources: Iterable[Path]) -> None:
    """Remove the compiled code of the sources in the folder `place` if it was made from other sources than these."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    folder = _cache_folder()
    folder = place / "__pycache__" if folder.name == "__pycache__" else folder
    stamp = folder / f"normlab-{place.name}.sources"
    with suppress(OSError):  # a read-only or vanished cache only costs time
        if stamp.is_file() and stamp.read_text() == digest:
            return
        for index in folder.glob("*.nbi"):
            index.unlink(missing_ok=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)


@njit(cache=True)
def _nothing() -> None:
    pass


def _cache_folder() -> Path:
    """Where Numba keeps what is compiled here: beside the sources, or in the user's cache if that is read-only."""
    dispatcher: Any = _nothing
    return Path(dispatcher.stats.cache_path)


_HERE = Path(__file__).parent
_KERNELS = _HERE.parent
_SOURCES = [*_HERE.glob("*.py"), *(_KERNELS / "cpu").glob("_*.py"), _KERNELS.parent / "norms" / "program.py"]
for _place in (_HERE, _KERNELS / "cpu"):
    discard_stale(_place, _SOURCES)
