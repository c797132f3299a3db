"""Copies of images among the splits, pixel for pixel or nearly: such a test image tests nothing.

Nearly: the signs of 64 horizontal differences of a thumbnail (a perceptual hash) agree in all but a few, and so do the
thumbnails themselves. Brightness, compression and small changes of size do not hide a copy; crops and turns do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normlab.data._dataset import Copies, Dataset, Pixels, Split, blocks_of, measured
from normlab.errors import DataError

_SHOWN = 3
_FLAG = "(--drop-leaks)"
_SIDE = 16  # pixels of a thumbnail's side
_BITS, _MOST_BITS = 64, 6  # of the hash, and how many of them may differ
_MOST_LEVELS = 5.0  # of 255, by which thumbnails without their mean may differ on average
_BLOCK = 2048
MOST = 100_000  # images in all, among which copies that are not exact are looked for: the work grows with the square

# whose images are looked for in whose: what is found is taken out of the second
PAIRS = (("test", "train"), ("test", "val"), ("val", "train"))


def find_copies(splits: Mapping[str, Split]) -> list[Copies]:
    """The copies among three splits, each row of `among` once."""
    looks = {name: _take_prints(split.images) for name, split in splits.items()}
    near = sum(map(len, splits.values())) <= MOST
    found = []
    for of, among in PAIRS:
        rows = _pairs(looks[of], looks[among], near)
        if rows:
            found.append(Copies(of, among, tuple(rows)))
    return found


def leak_sentences(copies: Sequence[Copies], where: Callable[[str, int], str]) -> tuple[str, ...]:
    """A sentence for each pair of splits; `where` names a row of a split."""
    sentences = []
    for one in copies:
        exact = sum(same for *_, same in one.rows)
        some = "; ".join(f"{where(one.among, row)} is {where(one.of, of)}" for of, row, _ in one.rows[:_SHOWN])
        more = "; ..." if len(one.rows) > _SHOWN else ""
        sentences.append(
            f"{len(one.rows)} images of the {one.among} split are copies of {one.of} images ({exact} pixel for pixel, "
            f"{len(one.rows) - exact} nearly): {some}{more}; drop_leaks=True {_FLAG} takes them out"
        )
    return tuple(sentences)


def without(dataset: Dataset) -> Dataset:
    """The dataset without the images whose copies a later split has: test keeps all of its images.

    Raises DataError if a split or a class of the training split has none left.
    """
    if not dataset.copies:
        return dataset
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    dropped = 0
    for name in ("train", "val"):
        rows = {row for one in dataset.copies if one.among == name for _, row, _ in one.rows}
        keep = np.setdiff1d(np.arange(len(splits[name])), list(rows))
        dropped += len(rows)
        before = set(splits[name].labels.tolist())
        splits[name] = Split(np.ascontiguousarray(splits[name].images[keep]), splits[name].labels[keep])
        gone = sorted(before - set(splits[name].labels.tolist()))
        if not len(keep) or (gone and name == "train"):
            lost = ", ".join(repr(dataset.class_names[k]) for k in gone)
            raise DataError(f"--drop-leaks leaves no image of {lost} in the {name} split: all of them are copies")
    notes = tuple(note for note in dataset.notes if _FLAG not in note)
    notes = (*notes, f"{dropped} images of the train and val splits were left out: a later split has copies of them")
    return measured(dataset.name, dataset.class_names, splits, notes)


@dataclass(frozen=True)
class _Prints:
    """What copies are known by: the pixels' digest, the hash's signs (N, 64) and the thumbnails (N, pixels)."""

    digests: list[bytes]
    signs: NDArray[np.float32]
    thumbs: NDArray[np.float32]


def _take_prints(images: Pixels) -> _Prints:
    from hashlib import blake2b

    digests: list[bytes] = []
    signs, thumbs = [], []
    rows, columns = (_averaging(size, _SIDE) for size in images.shape[2:])
    narrow, wide = _averaging(images.shape[2], 8), _averaging(images.shape[3], 9)
    for block in blocks_of(images):
        digests += [blake2b(image.tobytes(), digest_size=16).digest() for image in block]
        gray = block.mean(1, dtype=np.float32)
        steps = np.diff(narrow @ gray @ wide.T, axis=2).reshape(len(gray), -1)
        signs.append(np.where(steps > 0, 1, -1).astype(np.float32))
        thumb = (rows @ gray @ columns.T).reshape(len(gray), -1)
        thumbs.append(thumb - thumb.mean(1, keepdims=True))
    return _Prints(digests, np.concatenate(signs), np.concatenate(thumbs))


def _averaging(size: int, to: int) -> NDArray[np.float32]:
    """The matrix (to, size) that averages over equal stretches, parts of pixels included."""
    edges = np.linspace(0, size, to + 1)
    start, end = edges[:-1, None], edges[1:, None]
    at = np.arange(size)
    shares = np.clip(np.minimum(end, at + 1) - np.maximum(start, at), 0, None)
    averages: NDArray[np.float32] = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    return averages


def _pairs(of: _Prints, among: _Prints, near: bool) -> list[tuple[int, int, bool]]:
    first = {digest: row for row, digest in reversed(list(enumerate(of.digests)))}
    found = {row: (first[digest], True) for row, digest in enumerate(among.digests) if digest in first}
    for start in range(0, len(among.signs) if near else 0, _BLOCK):
        agree = among.signs[start : start + _BLOCK] @ of.signs.T
        for at, row in np.argwhere(agree >= _BITS - 2 * _MOST_BITS):
            other = start + int(at)
            if other not in found and np.abs(among.thumbs[other] - of.thumbs[row]).mean() <= _MOST_LEVELS:
                found[other] = (int(row), False)
    return [(row, other, exact) for other, (row, exact) in sorted(found.items())]
