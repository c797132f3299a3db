"""Where a norm's weight and bias start: batch norm from 1 and 0 against other beginnings."""

from __future__ import annotations

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.comparisons import compare, curve_records, effort, scale_of, test_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments import resnet_variants

USUAL = "bn"
STARTS = ("initial_weight=0.1", "initial_weight=2", "initial_bias=-1", "initial_bias=1")
SPEC = {**resnet_variants.SPEC, "norms": [USUAL, *(f"{USUAL}:{start}" for start in STARTS)]}
SMALL = resnet_variants.SMALL
ALIKE = 0.01


def run(setting: Setting) -> Result:
    found = compare("initial-affine", setting, SPEC, {"batch_sizes": 16, "augment": "crop"})
    findings = []
    for start in STARTS:
        other, usual = found.paired(test_accuracy, {"norm": f"{USUAL}:{start}"}, {"norm": USUAL})
        if other:
            findings.append(
                verdicts.alike(
                    f"{USUAL} with {start.replace('_', ' ').replace('=', ' ')} ends where it does from 1 and 0 "
                    f"(within {verdicts.percent(ALIKE)})",
                    verdicts.OURS,
                    other,
                    usual,
                    margin=ALIKE,
                    images=found.environment["test_images"],
                    names=(start, "1 and 0"),
                )
            )
    records = curve_records(found.cells, lambda cell: cell["norm"])
    return Result(
        findings,
        {
            "network": str(found.cells[0]["model"]),
            "training": f"SGD 0.1, momentum 0.9, {found.length(SPEC)}, batch {found.cells[0]['batch_size']}; every "
            "norm of the network starts alike",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={"curves": training(records, "series", ("train_loss", "val_loss"))},
        captions={"curves": "Mean over seeds, with its 95 % interval."},
        notes=found.unfinished(),
        records=records,
        scale=scale_of(found, setting, SPEC),
        seconds=found.seconds,
    )
