"""Stratified split: each class is dealt out in the same proportions, by a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normlab.data._dataset import Labels
from normlab.data._source import WHOLE, Source, listing
from normlab.errors import DataError

SPLITS = ("train", "val", "test")


def missing_splits(parts: Mapping[str, object]) -> tuple[str, ...]:
    """The splits that must be dealt out of the training images."""
    return tuple(name for name in SPLITS[1:] if name not in parts)


def assign(
    labels: Mapping[str, Labels], keep: Mapping[str, NDArray[np.bool_]], class_names: tuple[str, ...], seed: int
) -> dict[str, dict[str, NDArray[np.intp]]]:
    """For each split, the one part it comes from and the rows it takes there, ascending: {split: {part: rows}}.

    A split that the source has is taken as it is. Missing ones are dealt out of the training images: 20 % of
    each class if one is missing, 15 % each if validation and test both are, at least one image per class.
    Raises DataError for a class with too few images, and for an empty split or a single class.
    """
    train = WHOLE if WHOLE in labels else "train"
    if train not in labels:
        raise DataError(f"there are no training images, only {' and '.join(sorted(labels))}")
    used = {name: np.flatnonzero(keep[name]) for name in labels}
    for name, rows in used.items():
        if not len(rows):
            raise DataError(f"no usable image in the {name} part" if name != WHOLE else "no usable image")
    classes = np.unique(labels[train][used[train]])
    if len(classes) < 2:
        only = class_names[int(classes[0])]
        raise DataError(f"only one class, {only!r}, has training images; a comparison needs at least two")
    dealt = _deal_rows(labels[train], used[train], missing_splits(labels), class_names, seed)
    return {name: {train: dealt[name]} if name in dealt else {name: used[name]} for name in SPLITS}


def without_rare(source: Source, keep: dict[str, NDArray[np.bool_]]) -> tuple[Source, tuple[str, ...]]:
    """The source without the classes that have too few training images to be split, and a sentence about them.

    `keep` says which rows may be used, and says no for the rows of these classes afterwards.
    """
    train = WHOLE if WHOLE in source.parts else "train"
    if train not in source.parts:
        return source, ()
    need = 1 + len(missing_splits(source.parts))
    counts = np.bincount(source.parts[train].labels[keep[train]], minlength=len(source.class_names))
    rare = counts < need
    if not rare.any():
        return source, ()
    number = np.cumsum(~rare) - 1
    parts = {}
    for name, part in source.parts.items():
        keep[name] &= ~rare[part.labels]
        parts[name] = replace(part, labels=np.where(keep[name], number[part.labels], 0).astype(np.int64))
    names = tuple(name for name, few in zip(source.class_names, rare, strict=True) if not few)
    gone = ", ".join(f"{source.class_names[k]!r} ({counts[k]})" for k in np.flatnonzero(rare))
    return replace(source, class_names=names, parts=parts), (
        f"classes with fewer than {need} training images were left out: {gone}",
    )


def _deal_rows(
    labels: Labels, rows: NDArray[np.intp], missing: tuple[str, ...], class_names: tuple[str, ...], seed: int
) -> dict[str, NDArray[np.intp]]:
    members = {int(k): rows[labels[rows] == k] for k in np.unique(labels[rows])}
    need = 1 + len(missing)
    short = [(k, len(own)) for k, own in members.items() if len(own) < need]
    if short:
        lines = (f"{class_names[k]!r}: {count}" for k, count in short)
        raise DataError(
            f"too few images to split into train, {' and '.join(missing)} (drop_rare=True, --drop-rare, leaves such "
            f"classes out): every class needs at least {need}" + listing(lines, len(short))
        )
    share = 0.2 if len(missing) == 1 else 0.15
    dealt: dict[str, list[NDArray[np.intp]]] = {name: [] for name in ("train", *missing)}
    for k, own in members.items():
        # each class has a generator of its own: adding a class leaves the others' split as it was
        shuffled = own[np.random.default_rng([seed, k]).permutation(len(own))]
        count = max(1, round(share * len(own)))
        for i, name in enumerate(missing):
            dealt[name].append(shuffled[i * count : (i + 1) * count])
        dealt["train"].append(shuffled[len(missing) * count :])
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in dealt.items()}
