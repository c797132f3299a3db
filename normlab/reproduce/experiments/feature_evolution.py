"""How the distributions of features evolve while networks with seven norms, or none, are trained."""

from __future__ import annotations

import math
from typing import Any

from normlab.reproduce import verdicts
from normlab.reproduce.charts import evolution
from normlab.reproduce.comparisons import Comparison, effort, scale_of, trained
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments.resnet_variants import NORMS, SPEC
from normlab.reproduce.experiments.resnet_variants import SMALL as SMALL
from normlab.reproduce.finding import Finding
from normlab.study.training.features import CLASSIFIER_INPUT, growth

STABLE = ("torch-bn", "bn", "bin")  # what the report calls stable
DRIFT = 2.0  # times as wide as after the first epoch
QUICK = {"batch_sizes": 16, "augment": "crop", "limit_train": 192, "epochs": 4}


def run(setting: Setting) -> Result:
    # the same study as `resnet-variants`: the experiment that runs second trains nothing
    with trained("resnet-variants", setting, SPEC, QUICK) as (found, _):
        cells = found.finished()
    layers = _layers(cells)
    findings = [finding for layer, place in layers.items() for finding in _findings(found, layer, place)]
    return Result(
        findings,
        {
            "network": f"{found.cells[0]['model']}; GN with channels / 4 groups",
            "training": f"SGD 0.1, momentum 0.9, x0.1 after 75 % and 95 % of the epochs; "
            f"{found.length(SPEC)}, batch {found.cells[0]['batch_size']}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
            "features": "percentiles of all values on the same validation images after every epoch, in evaluation mode",
        },
        charts={_key(layer): evolution(panels) for layer in layers if (panels := _panels(found, layer))},
        captions={
            _key(layer): f"{place[0].upper()}{place[1:]}: median, middle 60 % (dark) and middle 98 % (pale) of the "
            "values; first seed of each norm."
            for layer, place in layers.items()
        },
        notes=[
            "Measured is how many times as wide the middle 98 % of values is after the last epoch as after the first. "
            f"More than {DRIFT:g} times is called drift here; the report shows pictures and names no bound.",
            *found.unfinished(),
        ],
        records=[
            {
                "norm": cell["norm"],
                "seed": cell["seed"],
                "layer": layer,
                "growth": growth(cell["epochs"], layer),
                "epochs": [{"epoch": e["epoch"], **e["features"][layer]} for e in cell["epochs"]],
            }
            for cell in cells
            for layer in layers
        ],
        scale=scale_of(found, setting, SPEC),
        seconds=found.seconds,
    )


def _layers(cells: list[dict[str, Any]]) -> dict[str, str]:
    """The classifier's input, and the last norm's, each with its name in words."""
    names = dict.fromkeys(name for cell in cells for record in cell["epochs"] for name in record["features"])
    last = [name for name in names if name != CLASSIFIER_INPUT][-1:]
    return {CLASSIFIER_INPUT: "the classifier's input", **dict.fromkeys(last, "the last norm's input")}


def _findings(found: Comparison, layer: str, place: str) -> list[Finding]:
    def of(cell: dict[str, Any]) -> float:
        return growth(cell["epochs"], layer)

    findings = []
    if alone := _ratios(found.values(of, norm="none")):
        findings.append(verdicts.ratio(f"{place} drifts without a norm", "NN diverges", alone, DRIFT))
    for norm in STABLE:
        if values := _ratios(found.values(of, norm=norm)):
            findings.append(
                verdicts.ratio(f"{place} stays as it is with {norm}", f"{norm} stable", values, DRIFT, below=True)
            )
    one, other = found.paired(of, {"norm": "none"}, {"norm": "bn"})
    if beside := _ratios([a / b for a, b in zip(one, other, strict=True) if b]):
        claim = f"{place} widens more without a norm than with bn"
        findings.append(verdicts.ratio(claim, "NN diverges, bn stable", beside, 1.0))
    return findings


def _panels(found: Comparison, layer: str) -> dict[str, list[dict[str, Any]]]:
    """The first seed of every norm."""
    firsts = {norm: found.finished(norm=norm) for norm in NORMS}
    return {
        norm: [{"epoch": record["epoch"], **record["features"][layer]} for record in cells[0]["epochs"]]
        for norm, cells in firsts.items()
        if cells
    }


def _key(layer: str) -> str:
    return f"evolution-{layer.replace(' ', '-')}"


def _ratios(values: list[float]) -> list[float]:
    """The ratios that have a logarithm: a layer that is dead or has overflowed has no width."""
    return [value for value in values if math.isfinite(value) and value > 0]
