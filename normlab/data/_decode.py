"""A source into the cache: headers first, then the split, then every image once, bad ones collected on the way."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from normlab.data import _cache
from normlab.data._dataset import SIXTEEN_BITS, Dataset, Levels, Pixels, measured
from normlab.data._leaks import find_copies, leak_sentences
from normlab.data._pixels import Header, decode, extremes, fit_array, read_header
from normlab.data._source import Encoded, Part, Progress, Source, listing
from normlab.data._split import SPLITS, assign, missing_splits, without_rare
from normlab.errors import DataError

DEFAULT_SIZE = 64  # pixels, for images that differ in size
_GROUP_BYTES = 32 << 20  # decoded pixels in memory at once
_HALF = 128  # of the 256 values of a pixel
_THREADS = min(4, os.cpu_count() or 1)
_WORTH_A_THREAD = 16 << 10  # encoded bytes; Pillow decodes without the interpreter's lock, and opens with it

Shape = tuple[int, int, int]
Bad = dict[str, dict[int, str]]  # part -> row -> why it cannot be used
Rows = dict[str, dict[str, NDArray[np.intp]]]  # split -> part -> rows
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """The arguments of `load`, and where the result is kept."""

    name: str
    root: Path
    fingerprint: str
    seed: int
    image_size: int | None
    skip_bad: bool
    drop_rare: bool
    full_range: bool
    progress: Progress

    def entry(self, split_given: bool) -> Path:
        seed = None if split_given else self.seed
        return self.root / _cache.entry_name(
            self.name, self.fingerprint, self.image_size, seed, self.drop_rare, self.full_range
        )


def decoded(source: Source, request: Request) -> Dataset:
    """The dataset of `source`, written to the cache; a DataError lists every image that cannot be used."""
    bad: Bad = {part: {} for part in source.parts}
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # decoders warn of damage that they go on to raise for
        shape, deep, notes = _shape(source, request, bad)
        levels = _extremes(source, bad, pool, deep) if request.full_range else SIXTEEN_BITS
        if _count(source, bad) and not request.skip_bad:
            for part in source.parts:  # the rest of the list: images whose header is good and whose body is not
                for _ in _pixels(source, part, shape, bad, pool, _Count(source, request), SIXTEEN_BITS):
                    pass
            raise _unusable_error(source, bad)
        while True:
            found = _count(source, bad)
            keep = {part: _mask_of_good(own, bad[part]) for part, own in source.parts.items()}
            chosen, left_out = without_rare(source, keep) if request.drop_rare else (source, ())
            labels = {part: own.labels for part, own in chosen.parts.items()}
            rows = assign(labels, keep, chosen.class_names, request.seed)
            try:
                return _write_dataset(chosen, request, rows, shape, (*notes, *left_out), bad, pool, deep, levels)
            except _DecodedBadly:
                if not request.skip_bad:
                    raise _unusable_error(source, bad) from None
                assert _count(source, bad) > found  # so the loop ends


class _DecodedBadly(Exception):
    """Images turned out to be bad after the split was made with them."""


def _count(source: Source, bad: Bad) -> int:
    return len(source.strays) + sum(map(len, bad.values()))


def _mask_of_good(part: Part, bad: dict[int, str]) -> NDArray[np.bool_]:
    keep = np.ones(len(part.labels), bool)
    keep[list(bad)] = False
    return keep


def _bad_lines(source: Source, bad: Bad) -> Iterator[str]:
    for where, reason in source.strays:
        yield f"{where}: {reason}"
    for part, rows in bad.items():
        for row, reason in sorted(rows.items()):
            yield f"{source.parts[part].where(row)}: {reason}"


def _unusable_error(source: Source, bad: Bad) -> DataError:
    total = len(source.strays) + sum(len(part.labels) for part in source.parts.values())
    count = _count(source, bad)
    return DataError(
        f"{count} of {total} images cannot be used"
        + listing(_bad_lines(source, bad), count)
        + "\nRemove or replace them, or go on without them: skip_bad=True (--skip-bad)"
    )


class _Count:
    """Reports progress over all parts of a source."""

    def __init__(self, source: Source, request: Request) -> None:
        self.total = sum(len(part.labels) for part in source.parts.values())
        self.done = 0
        self.report = request.progress

    def add(self, count: int, text: str) -> None:
        self.done += count
        self.report(self.done, self.total, text)


def _shape(source: Source, request: Request, bad: Bad) -> tuple[Shape, bool, tuple[str, ...]]:
    """(C, H, W) of the decoded images, whether all have 16 bits, and a note if they had to be brought to one size."""
    asked = request.image_size
    if source.shape:
        return (source.shape[0], asked or source.shape[1], asked or source.shape[2]), False, ()
    gray = deep = True
    sizes: set[tuple[int, int]] = set()
    count = _Count(source, request)
    for part, own in source.parts.items():
        row = 0
        for block in own.blocks():
            for header in map(_attempt(read_header), block):
                if isinstance(header, Header):
                    gray &= header.gray
                    deep &= header.deep
                    sizes.add((header.height, header.width))
                else:
                    bad[part][row] = header
                row += 1
            count.add(len(block), "checking images")
    if not sizes:
        raise _unusable_error(source, bad)
    channels = 1 if gray else 3
    if asked:
        return (channels, asked, asked), deep, ()
    if len(sizes) == 1:
        return (channels, *sizes.pop()), deep, ()
    small, *_, large = sorted(sizes, key=lambda size: (math.prod(size), size))
    note = (
        f"images differ in size, from {small[1]} x {small[0]} to {large[1]} x {large[0]} pixels; each was cropped "
        f"about its centre and resized to {DEFAULT_SIZE} x {DEFAULT_SIZE} (image_size chooses another size)"
    )
    return (channels, DEFAULT_SIZE, DEFAULT_SIZE), deep, (note,)


def _narrow(highest: int) -> tuple[str, ...]:
    """A note on 16-bit images that use less than half of their range; `highest` is their highest pixel in 8 bits."""
    if highest >= _HALF:
        return ()
    return (
        f"its 16-bit images use no more than the first {highest + 1} of 256 parts of their range (pixels up to "
        f"{(highest + 1) * 256 - 1} of 65535): of 256 shades they keep {highest + 1}; full_range=True (--full-range) "
        "keeps all",
    )


def _extremes(source: Source, bad: Bad, pool: ThreadPoolExecutor, deep: bool) -> Levels:
    """The lowest and the highest pixel of all images that can be used. Raises DataError unless they have 16 bits."""
    if not deep:
        raise DataError(
            "full_range (--full-range) is for images that all have 16 bits, and these have not; leave it out"
        )
    low, high = SIXTEEN_BITS[::-1]
    for part, own in source.parts.items():
        row = 0
        for block in own.blocks():
            good = [at for at in range(len(block)) if row + at not in bad[part]]
            for at, found in zip(good, pool.map(_attempt(extremes), [block[at] for at in good]), strict=True):
                if isinstance(found, str):
                    bad[part][row + at] = found
                else:
                    low, high = min(low, found[0]), max(high, found[1])
            row += len(block)
    return low, high


def _attempt(use: Callable[[Encoded], T]) -> Callable[[Encoded], T | str]:
    """The result of `use`, or the reason as text where the image cannot be used."""

    def attempt(data: Encoded) -> T | str:
        try:
            return use(data)
        except Exception as error:  # a decoder may raise almost anything on a damaged file
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return reason or type(error).__name__

    return attempt


def _pixels(
    source: Source, part: str, shape: Shape, bad: Bad, pool: ThreadPoolExecutor, count: _Count, levels: Levels
) -> Iterator[tuple[NDArray[np.intp], Pixels]]:
    """Row numbers and pixels of the part's good images, in order; what fails to decode is added to `bad`."""
    group = max(1, _GROUP_BYTES // math.prod(shape))
    attempt = _attempt(lambda data: decode(data, shape, levels))
    row = 0
    for block in source.parts[part].blocks():
        for start in range(0, len(block), group):
            pieces = block[start : start + group]
            rows = np.arange(row, row + len(pieces))
            if isinstance(pieces, np.ndarray):
                fits = pieces.shape[1:] == shape
                yield rows, pieces if fits else np.stack([fit_array(image, *shape[1:]) for image in pieces])
            else:
                good = [at for at in range(len(pieces)) if row + at not in bad[part]]
                each = pool.map if _mean_size(pieces) > _WORTH_A_THREAD else map
                images = dict(zip(good, each(attempt, [pieces[at] for at in good]), strict=True))
                bad[part].update({row + at: image for at, image in images.items() if isinstance(image, str)})
                kept = [at for at in good if not isinstance(images[at], str)]
                if kept:
                    yield rows[kept], np.stack([images[at] for at in kept])
            row += len(pieces)
            count.add(len(pieces), "decoding images")


def _mean_size(images: list[Encoded]) -> float:
    return sum(len(image) for image in images if isinstance(image, bytes)) / len(images)


def _name_of_row(source: Source, rows: dict[str, NDArray[np.intp]], row: int) -> str:
    """The name of a row of a split that is made of these rows of a part."""
    ((part, own),) = rows.items()
    return source.parts[part].where(int(own[row]))


def _write_dataset(
    source: Source,
    request: Request,
    rows: Rows,
    shape: Shape,
    notes: tuple[str, ...],
    bad: Bad,
    pool: ThreadPoolExecutor,
    deep: bool,
    levels: Levels,
) -> Dataset:
    folder = request.entry(split_given=not missing_splits(source.parts))
    before = _count(source, bad)
    if before:
        some = "; ".join(line for line, _ in zip(_bad_lines(source, bad), range(3), strict=False))
        notes = (*notes, f"{before} images cannot be used and were left out: {some}" + ("; ..." if before > 3 else ""))
    with _cache.disk_trouble(request.root):
        with _cache.new_entry(folder) as scratch:
            counts = {split: sum(map(len, own.values())) for split, own in rows.items()}
            _cache.check_room(request.root, sum(counts.values()) * math.prod(shape))
            with ExitStack() as files:
                sinks = {
                    split: files.enter_context(
                        closing(_cache.ImageFile(scratch / f"{split}.npy", counts[split], shape))
                    )
                    for split in SPLITS
                }
                progress = _Count(source, request)
                highest = 0
                for part in source.parts:
                    for numbers, pixels in _pixels(source, part, shape, bad, pool, progress, levels):
                        highest = max(highest, int(pixels.max())) if deep else _HALF
                        for split, sink in sinks.items():
                            mine = np.isin(numbers, rows[split].get(part, ()), assume_unique=True)
                            sink.write(pixels[mine])
            if _count(source, bad) > before:
                raise _DecodedBadly
            for split in SPLITS:
                ((part, own),) = rows[split].items()
                _cache.save_labels(scratch, split, source.parts[part].labels[own])
            splits = _cache.read_splits(scratch)
            copies = tuple(find_copies(splits))
            narrow = _narrow(highest)
            leaks = leak_sentences(copies, lambda split, row: _name_of_row(source, rows[split], row))
            dataset = measured(request.name, source.class_names, splits, (*source.notes, *notes, *narrow, *leaks))
            dataset = replace(dataset, copies=copies, levels=levels)
            _cache.save_entry(scratch, dataset, skipped=before)
            del dataset, splits  # its memory maps would keep the folder from being renamed on some systems
        found = _cache.find(folder, request.skip_bad)
    if found is None:
        raise DataError(f"the cache entry {str(folder)!r} vanished while it was written; run again")
    return found
