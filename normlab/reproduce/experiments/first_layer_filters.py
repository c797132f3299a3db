"""The filters of the first convolution of networks with each norm, beside the random ones that they started from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.explain.networks import Network, trained_networks
from normlab.models import build_model
from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.comparisons import effort, scale_of, trained
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments.resnet_variants import SMALL as SMALL
from normlab.reproduce.experiments.resnet_variants import SPEC
from normlab.reproduce.galleries import as_png
from normlab.study.training.cell import derive

MOVED = 0.5  # of their length, at least: then it is a filter that was learned
_SIDE, _GAP = 28, 4  # pixels of a filter in the picture, and between two
_MOST = 16  # filters of a network in the picture

Filters = NDArray[np.float64]  # (F, C, height, width)


def run(setting: Setting) -> Result:
    # the networks of resnet-variants: the experiment that runs second does not train them again
    with trained("resnet-variants", setting, SPEC, {"batch_sizes": 16, "augment": "crop"}) as (found, directory):
        dataset, networks, _ = trained_networks(directory)
        ends = {(n.norm, n.seed): first_filters(n.load(dataset)) for n in networks}
        starts = {(n.norm, n.seed): _start(n, dataset) for n in networks}
    records: list[dict[str, Any]] = [
        {"norm": norm, "seed": seed, "moved": distance(starts[norm, seed], filters)}
        for (norm, seed), filters in ends.items()
    ]
    norms = list(dict.fromkeys(record["norm"] for record in records))
    shown = {norm: next(filters for (name, _), filters in ends.items() if name == norm) for norm in norms}
    first = next(iter(starts.values()))
    return Result(
        [
            verdicts.beyond(
                f"with {norm} the first filters are learned: they move by more than half of their length",
                verdicts.OURS,
                [record["moved"] for record in records if record["norm"] == norm],
                MOVED,
            )
            for norm in norms
        ],
        {
            "network": str(found.cells[0]["model"]),
            "training": f"as resnet-variants: {found.length(SPEC)}, batch {found.cells[0]['batch_size']}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={"moved": bars(records, "moved", "norm", title="Distance from the start over length", zero=True)},
        pictures={"filters": as_png(sheet([first, *shown.values()]))},
        captions={
            "moved": "Of all filters of the first layer together: mean over seeds, with its 95 % interval.",
            "filters": f"A row for each: the start, then {', '.join(norms)}, of the first seed. Every filter is "
            "stretched to the whole range from black to white; middle gray is 0.",
        },
        notes=found.unfinished(),
        records=records,
        scale=scale_of(found, setting, SPEC),
        seconds=found.seconds,
    )


def first_filters(model: Any) -> Filters:
    """The weights of a network's first convolution."""
    from torch import nn

    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return np.asarray(first.weight.detach().cpu().numpy(), np.float64)


def distance(one: Filters, other: Filters) -> float:
    """How far the other filters are from the first, relative to the length of the first."""
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


def sheet(rows: list[Filters]) -> NDArray[np.float64]:
    """Filters as one picture (3, height, width) from 0 to 255, a row for each array of them."""
    step, count = _SIDE + _GAP, min(_MOST, max(len(row) for row in rows))
    made = np.full((3, len(rows) * step - _GAP, count * step - _GAP), 255.0)
    for top, row in enumerate(rows):
        for left, filter_ in enumerate(row[:count]):
            colours = filter_[:3] if len(filter_) >= 3 else np.broadcast_to(filter_[:1], (3, *filter_.shape[1:]))
            places = [np.arange(_SIDE) * side // _SIDE for side in colours.shape[1:]]
            large = colours[:, places[0][:, None], places[1]]
            gray = 127.5 * (1 + large / max(float(np.abs(large).max()), 1e-12))
            made[:, top * step : top * step + _SIDE, left * step : left * step + _SIDE] = gray
    return made


def _start(network: Network, dataset: Any) -> Filters:
    """The filters that the training of this network began with."""
    return first_filters(
        build_model(
            network.cell.model,
            network.cell.norm,
            num_classes=dataset.num_classes,
            in_channels=dataset.channels,
            image_size=dataset.size,
            seed=derive(network.seed, "initial weights"),
        )
    )
