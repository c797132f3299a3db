"""How much a source may hold before it is taken for a bomb: a small file that unpacks to more than anybody has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from normlab.errors import DataError

MOST_ROWS = 20_000_000  # images of a source; ImageNet-21k has 14 million
MOST_UNPACKED = 1 << 30  # bytes that an archive may always unpack to,
MOST_RATIO = 200  # or so many for each of its own: images are compressed already
DEEPEST = 64  # folders above an image

_LIFTED = ContextVar("limits lifted", default=False)
_ADVICE = "if that is as it should be, lift the limits: no_limits=True (--no-limits)"


@contextmanager
def lifted(lift: bool) -> Iterator[None]:
    """Within the block there are no limits, if `lift` is true."""
    token = _LIFTED.set(lift)
    try:
        yield
    finally:
        _LIFTED.reset(token)


def check_rows(rows: int, what: str) -> None:
    """Raise DataError if a source says that it has more rows than any has."""
    if rows > MOST_ROWS and not _LIFTED.get():
        raise DataError(f"{what} has {rows:,} rows, more than {MOST_ROWS:,}; {_ADVICE}")


def check_unpacked(unpacked: int, packed: int) -> None:
    """Raise DataError if an archive of `packed` bytes holds so many that it must be a bomb."""
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * packed) and not _LIFTED.get():
        raise DataError(
            f"the archive has {packed / 2**20:.1f} MiB and unpacks to {unpacked / 2**30:.1f} GiB or more, as "
            f"decompression bombs do; {_ADVICE}"
        )


def check_depth(depth: int, what: str) -> None:
    """Raise DataError if folders are nested deeper than anybody nests them."""
    if depth > DEEPEST and not _LIFTED.get():
        raise DataError(f"{what[:60]!r}... lies {depth} folders deep, more than {DEEPEST}; {_ADVICE}")
