"""The images of a study: loaded as chosen, cut to the limits, and identified by a hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from normlab.data import Dataset, Split, load
from normlab.data._dataset import channel_statistics
from normlab.errors import targets
from normlab.models.names import own_place
from normlab.study.spec import DataChoice, StudySpec


def open_data(choice: DataChoice, progress: Callable[..., Any] | None = None) -> Dataset:
    """The dataset of a choice; its `hash` covers the choice, so that other limits are other data.

    A limited split is a random subset, the same for every norm and seed; the input statistics are those of
    the training images that are left. Raises DataError or UsageError as `normlab.data.load` does.
    """
    dataset = load(
        choice.source,
        seed=choice.split_seed,
        image_size=choice.image_size,
        skip_bad=choice.skip_bad,
        drop_leaks=choice.drop_leaks,
        drop_rare=choice.drop_rare,
        full_range=choice.full_range,
        no_limits=choice.no_limits,
        progress=progress,
    )
    facts = {**asdict(choice), "source": dataset.hash}
    del facts["no_limits"]  # which changes no image
    for later in ("drop_leaks", "drop_rare", "full_range"):  # earlier studies keep their hashes
        if not facts[later]:
            del facts[later]
    changes: dict[str, Any] = {"hash": hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:32]}
    if choice.limit_train is not None and choice.limit_train < len(dataset.train.labels):
        train = _subset(dataset.train, choice.limit_train, choice.split_seed)
        mean, std = channel_statistics(train.images)
        changes |= {"train": train, "channel_mean": mean, "channel_std": std}
    if choice.limit_eval is not None:
        changes["val"] = _subset(dataset.val, choice.limit_eval, choice.split_seed)
        changes["test"] = _subset(dataset.test, choice.limit_eval, choice.split_seed)
    return dataclasses.replace(dataset, **changes)


def identity(dataset: Dataset, spec: StudySpec) -> str:
    """What a cell of this study is trained on, apart from its settings: the data, and code of the user's own.

    The source files of plug-ins, of models and of augmentations from outside, and pretrained weights, are part of it:
    other code is other cells.
    """
    augmented = (targets.split(setting) for setting in spec.augment or ())
    own = {
        *filter(None, map(own_place, spec.models)),
        *(targets.split(plugin)[0] for plugin in spec.plugins),
        *(place for place, name in augmented if name),
    }
    files = {file for place in own if (file := targets.load_module(place, place).__file__) is not None}
    if spec.weights:
        files.add(spec.weights)
    if not files:
        return dataset.hash
    sources = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join([dataset.hash, *sources]).encode()).hexdigest()[:32]


def _subset(split: Split, size: int, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(split.labels))[:size]
    order.sort()
    return Split(np.ascontiguousarray(split.images[order]), split.labels[order])
