"""A residual network of fourteen layers on CIFAR-10 with seven variants of normalization."""

from __future__ import annotations

from typing import Any

from normlab.reproduce import comparisons, verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.comparisons import (
    Measure,
    compare,
    curve_records,
    effort,
    scale_of,
    test_accuracy,
    train_accuracy,
    val_accuracy,
)
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.published import VARIANTS, contradictions

REPORTED = {(row.network, row.split): row for row in VARIANTS}
NORMS = list(dict.fromkeys(row.network for row in VARIANTS))
SPEC = {
    "norms": NORMS,
    "models": "resnet14",
    "epochs": 100,
    "batch_sizes": 128,
    "optimizers": "sgd",
    "lrs": 0.1,
    "schedule": "step:75%,95%",
    "momentum": 0.9,
    "weight_decays": 1e-4,
    "augment": "crop,flip",
}
ONLY_FULL = (
    "The reported accuracies and F1 scores are those of a hundred epochs of all images of 32 x 32 pixels, and are "
    "compared at that length only (--scale full)."
)
SMALL = {**comparisons.SMALL, "seeds": 12}
ALIKE = 0.01
EARLY = 0.1  # of the epochs: after ten of a hundred


def run(setting: Setting) -> Result:
    found = compare("resnet-variants", setting, SPEC, {"batch_sizes": 16, "augment": "crop"})
    scale = scale_of(found, setting, SPEC)
    images = found.environment["test_images"]
    # figures of single trainings are compared at the published length only
    findings = [
        verdicts.like_one_run(
            f"{what}, {norm}",
            reported,
            found.values(measure, norm=norm),
            original=True,
            within=0.01,
        )
        for norm in NORMS
        if not scale and found.finished(norm=norm)
        for what, reported, measure in (
            ("training accuracy", REPORTED[norm, "train"].accuracy, train_accuracy),
            ("validation accuracy", REPORTED[norm, "validation"].accuracy, val_accuracy),
            ("validation macro-F1", REPORTED[norm, "validation"].macro_f1, _val_macro_f1),
            ("test accuracy", REPORTED[norm, "test"].accuracy, test_accuracy),
            ("test macro-F1", REPORTED[norm, "test"].macro_f1, _macro_f1),
        )
    ]

    def against(claim: str, reported: str, one: str, other: str, *, of: Measure = test_accuracy) -> None:
        more, less = found.paired(of, {"norm": one}, {"norm": other})
        if more:
            findings.append(verdicts.greater(claim, reported, more, less, images=images, names=(one, other)))

    def early(cell: dict[str, Any]) -> float:
        accuracy: float = cell["epochs"][max(0, round(EARLY * len(cell["epochs"])) - 1)]["val_accuracy"]
        return accuracy

    for norm in ("bn", "gn", "in", "ln", "none"):
        against(f"BIN is better than {norm}", "BIN best: 88.1 % test accuracy", "bin", norm)
    against(
        "after a tenth of the epochs BIN is ahead of no norm", "70 % validation against 40 %", "bin", "none", of=early
    )
    against("batch norm is better than no norm", "87.8 % against 84.9 %", "bn", "none")
    ours, stock = found.paired(test_accuracy, {"norm": "bn"}, {"norm": "torch-bn"})
    if ours:
        findings.append(
            verdicts.alike(
                f"our BN and torch's are alike (within {verdicts.percent(ALIKE)})",
                "own BN = torch BN",
                ours,
                stock,
                margin=ALIKE,
                images=images,
                names=("bn", "torch-bn"),
            )
        )
    records = curve_records(found.cells, lambda cell: cell["norm"])
    return Result(
        findings,
        {
            "network": f"{found.cells[0]['model']}; GN with channels / 4 groups",
            "training": f"SGD 0.1, momentum 0.9, x0.1 after 75 % and 95 % of the epochs, weight decay 1e-4; "
            f"{found.length(SPEC)}, batch {found.cells[0]['batch_size']}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={"curves": training(records, "series", ("train_loss", "val_loss"))},
        captions={"curves": "Mean over seeds, with its 95 % interval."},
        notes=[
            *([ONLY_FULL] if scale else []),
            *(f"The report contradicts itself. {said}" for said in contradictions(VARIANTS)),
            *found.unfinished(),
        ],
        records=records,
        scale=scale,
        seconds=found.seconds,
    )


def _val_macro_f1(cell: dict[str, Any]) -> float:
    score: float = cell["epochs"][-1]["val_macro_f1"]
    return score


def _macro_f1(cell: dict[str, Any]) -> float:
    score: float = cell["test"]["macro_f1"]
    return score
