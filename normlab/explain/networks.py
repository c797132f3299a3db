"""The trained networks of a study: loaded from its directory, which is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.data import Dataset
from normlab.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from normlab.study.axes import Cell


@dataclass(frozen=True)
class Network:
    """One finished cell and where its weights lie."""

    cell: Cell
    weights: Path

    @property
    def norm(self) -> str:
        return self.cell.norm

    @property
    def seed(self) -> int:
        return self.cell.seed

    def load(self, dataset: Dataset) -> nn.Module:
        """The trained network in evaluation mode. Raises DataError if the weights are damaged."""
        from normlab.models.residual import build_model
        from normlab.study.trained.stored import read_weights

        model = build_model(
            self.cell.model,
            self.cell.norm,
            num_classes=dataset.num_classes,
            in_channels=dataset.channels,
            image_size=dataset.size,
            dropout=self.cell.dropout,
        )
        try:
            model.load_state_dict(read_weights(self.weights))
        except RuntimeError as error:
            raise DataError(f"{self.weights} cannot be loaded: {error}") from error
        return model.eval()


def trained_networks(directory: Path, number: int | None = None) -> tuple[Dataset, list[Network], Mapping[str, Any]]:
    """The data, the finished networks and the records of a study in `directory`, by default the one begun last.

    Raises DataError where no finished network has kept its weights, or the data has changed since.
    """
    from normlab.study.trained.stored import images_of, weights_in

    records, finished = weights_in(directory, number)
    found = [Network(stored.cell, path) for stored, path in finished]
    return images_of(records, directory), found, records


def at_best_settings(networks: list[Network], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Network]]:
    """Each norm's networks at the setting that was best for it, by seed; `settings` as a study's verdict has them."""

    def fits(network: Network, axes: Mapping[str, Any]) -> bool:
        facts = network.cell.columns()
        return all(facts.get(axis) == value for axis, value in axes.items())

    chosen = {norm: [n for n in networks if n.norm == norm and fits(n, axes)] for norm, axes in settings.items()}
    return {norm: sorted(of_norm, key=lambda n: n.seed) for norm, of_norm in chosen.items() if of_norm}


def pairs(chosen: Mapping[str, list[Network]]) -> Iterator[tuple[Network, Network]]:
    """Pairs of networks whose maps to compare: of different seeds, where there are several.

    Networks of one seed started from the same weights, so that comparing them across norms, but not within
    one, would favour the former.
    """
    names = list(chosen)
    for i, a in enumerate(names):
        for b in names[i:]:
            candidates = [(x, y) for x in chosen[a] for y in chosen[b] if x is not y]
            different = [(x, y) for x, y in candidates if x.seed != y.seed and (a != b or x.seed < y.seed)]
            yield from different or (candidates if a != b else [])
