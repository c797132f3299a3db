"""The trained networks in a study's directory, which is only read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from normlab.data import Dataset
from normlab.errors import DataError, UsageError
from normlab.models.names import is_code
from normlab.study.ending import kept_of
from normlab.study.keeping.checkpoint import FINAL, Damaged, read_state
from normlab.study.keeping.records import collect
from normlab.study.keeping.store import CHECKPOINTS, Store, StoredCell
from normlab.study.metric import metric_of
from normlab.study.source import open_data
from normlab.study.spec import DataChoice, make_spec
from normlab.study.trained.facts import Facts
from normlab.study.trained.network import Trained

_ABOUT_DATA = {"data", *(field.name for field in dataclasses.fields(DataChoice))}
_VERSIONS = ("normlab", "torch", "numpy", "python")


def trained_in(
    directory: Path | str, norm: str | None = None, seed: int | None = None, *, study: int | None = None
) -> Trained:
    """The trained network of a study: of the norm that its verdict recommends, or of another, at its best setting.

    Where the verdict recommends none, since nothing learned enough, it is that of the norm that comes first.
    Of several seeds the one of the highest validation accuracy is taken, unless `seed` names one. `study` is the number
    of the study, by default the one begun last. Raises UsageError for a norm or seed that the study has not, DataError
    where none has finished or kept its weights.
    """
    directory = Path(directory)
    records, finished = weights_in(directory, study)
    settings = records["verdict"]["settings"]  # of the norms, the best first
    norm = norm or records["verdict"]["best"] or next(iter(settings), None)
    if norm is None:
        raise DataError(f"{directory}: no training has finished, so there is no network yet")
    if norm not in settings:
        raise UsageError(f"norm {norm!r} has no finished training in {directory}; there are: {', '.join(settings)}")
    at_best = [
        (stored, path)
        for stored, path in finished
        if stored.cell.norm == norm
        and seed in (None, stored.cell.seed)
        and all(stored.cell.columns().get(axis) == value for axis, value in settings[norm].items())
    ]
    if not at_best:
        which = norm if seed is None else f"{norm}, seed {seed},"
        raise UsageError(f"{which} has no weights in {directory / CHECKPOINTS}; another norm or seed may have")
    figures = {cell["key"]: cell for cell in records["cells"]}
    metric = metric_of(records["environment"])
    stored, path = max(at_best, key=lambda found: metric.of(_tested(figures[found[0].key]), "val"))
    return _read_trained(records, stored, path, figures[stored.key])


def weights_in(directory: Path, number: int | None = None) -> tuple[dict[str, Any], list[tuple[StoredCell, Path]]]:
    """The records of a study, and its finished cells with the files of their weights.

    Raises DataError where no finished cell has kept its weights.
    """
    with Store(directory, readonly=True) as store:
        records = collect(store, number)
        study = store.study(records["study"])
        done = [stored for stored in store.cells(study.cells if study else []) if stored.status == "done"]
    paths = ((stored, directory / CHECKPOINTS / stored.key / FINAL) for stored in done)
    found = [(stored, path) for stored, path in paths if path.is_file()]
    if not found:
        raise DataError(f"{directory} has no trained network: {len(done)} cells are done, and none kept its weights")
    return records, found


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a finished cell's file, by their names in the network. Raises DataError if it is damaged."""
    try:
        tensors, _ = read_state(path)
    except Damaged as error:
        raise DataError(f"{path} cannot be loaded: {error}") from error
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


def images_of(records: Mapping[str, Any], directory: Path) -> Dataset:
    """The images that a study was trained on. Raises DataError if they have changed since."""
    # of the spec, what says which images: written out, the rest names settings that the optimizers may not have
    about_data = {name: value for name, value in records["spec"].items() if name in _ABOUT_DATA}
    dataset = open_data(make_spec(about_data).data_choice())
    if dataset.hash != records["environment"].get("data_hash"):
        raise DataError(f"the images of {dataset.name} are not those that {directory} was trained on any more")
    return dataset


def _tested(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of the epoch whose network was tested and kept."""
    found: Mapping[str, Any] = kept_of(figures["epochs"], figures.get("best_epoch"))
    return found


def _read_trained(records: Mapping[str, Any], stored: StoredCell, path: Path, figures: Mapping[str, Any]) -> Trained:
    facts = records["environment"]
    if "channel_mean" not in facts:  # a study of an earlier version
        dataset = images_of(records, path.parents[2])
        facts = {
            **facts, "channel_mean": dataset.channel_mean.tolist(), "channel_std": dataset.channel_std.tolist()
        }  # fmt: skip
    last, test = _tested(figures), figures["test"]
    channels, height, width = facts["image_shape"]
    about = Facts(
        model=stored.cell.model,
        norm=stored.cell.norm,
        class_names=tuple(facts["class_names"]),
        image_shape=(channels, height, width),
        mean=tuple(facts["channel_mean"]),
        std=tuple(facts["channel_std"]),
        levels=tuple(facts.get("levels", Facts.levels)),
        settings=stored.cell.columns(),
        metrics={
            **{name: value for name, value in last.items() if name.startswith("val_")},
            **{f"test_{name}": value for name, value in test.items()},
        },
        data={"name": str(facts.get("data")), "hash": str(facts.get("data_hash"))},
        versions={name: str(facts[name]) for name in _VERSIONS if name in facts},
    )
    return Trained(about, read_weights(path), stored.cell.model if is_code(stored.cell.model) else None)
