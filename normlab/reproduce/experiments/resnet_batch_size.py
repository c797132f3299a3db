"""Batch and group normalization at batch sizes 8, 32 and 128, for equal epochs and for equal updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from normlab.reproduce import comparisons, verdicts
from normlab.reproduce.charts import bars, training
from normlab.reproduce.comparisons import Comparison, compare, curve_records, effort, scale_of, test_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments import resnet_variants

SMALL = comparisons.SMALL
SIZES = (8, 32, 128)
EPOCHS = 60
ALIKE = 0.01
LONGER = 6.0


def run(setting: Setting) -> Result:
    published = {**resnet_variants.SPEC, "norms": "bn,gn", "epochs": EPOCHS}
    epochs = setting.pick(2, setting.epochs or EPOCHS)
    quick = {"epochs": epochs, "augment": "crop"}
    equal_epochs = compare("resnet-batch-size", setting, {**published, "batch_sizes": list(SIZES)}, quick)
    # as many updates as the largest batch has: a smaller batch sees fewer images
    shorter = {size: max(1, round(epochs * size / SIZES[-1])) for size in SIZES[:-1]}
    equal_updates = [
        compare(
            "resnet-batch-size",
            replace(setting, epochs=count),
            {**published, "batch_sizes": size},
            {**quick, "epochs": count},
        )
        for size, count in shorter.items()
    ]
    merged = Comparison(
        [*equal_epochs.finished(batch_size=SIZES[-1]), *(c for found in equal_updates for c in found.cells)],
        equal_epochs.environment,
    )
    findings = _findings(equal_epochs, "equal epochs") + _findings(merged, "equal updates")
    small, large = equal_epochs.paired(_seconds, {"batch_size": 8, "norm": "bn"}, {"batch_size": 128, "norm": "bn"})
    if small:
        ratios = [a / b for a, b in zip(small, large, strict=True)]
        finding = verdicts.about(
            "an epoch at batch size 8 takes about 6 times as long as at 128", "about 6 times as long", ratios, LONGER
        )
        findings.append(replace(finding, scale="this machine"))
    records = [
        {
            "variant": f"{cell['norm']}, batch {cell['batch_size']}, equal {kind}",
            "seed": cell["seed"],
            "test accuracy": test_accuracy(cell),
        }
        for kind, found in (("epochs", equal_epochs), ("updates", merged))
        for cell in found.finished()
    ]
    curves = {
        norm: curve_records(equal_epochs.finished(norm=norm), lambda cell: f"batch {cell['batch_size']}")
        for norm in ("bn", "gn")
    }
    fewer = ", ".join(f"{count} at {size}" for size, count in shorter.items())
    return Result(
        findings,
        {
            "network": str(equal_epochs.cells[0]["model"]),
            "training": f"SGD 0.1, momentum 0.9, x0.1 after 75 % and 95 % of the epochs; "
            f"{equal_epochs.length(published)} at every batch size, and {fewer} for as many updates as at {SIZES[-1]}",
            "data": equal_epochs.describe_data(setting),
            "trainings": effort(equal_epochs, *equal_updates),
        },
        charts={
            "accuracy": bars(records, "test accuracy", "variant", title="Test accuracy", percent=True),
            **{norm: training(rows, "series", ("train_loss", "val_loss")) for norm, rows in curves.items() if rows},
        },
        captions={
            "accuracy": "Mean over seeds, with its 95 % interval.",
            **{norm: f"{norm}, equal epochs: mean over seeds, with its 95 % interval." for norm in curves},
        },
        notes=[*equal_epochs.unfinished(), *merged.unfinished()],
        records=records,
        scale=scale_of(equal_epochs, setting, published),
        seconds=sum(one.seconds for one in (equal_epochs, *equal_updates)),
    )


def _findings(found: Comparison, kind: str) -> list[Any]:
    """What is claimed about batch sizes, as far as both sides were trained."""
    findings = []
    images = found.environment["test_images"]
    for norm, claim, reported, rule in (
        ("bn", "BN loses nothing at 8 against 128", "no loss at 8, to their surprise", verdicts.greater),
        ("gn", "GN is alike at 8 and 128", "GN almost invariant", verdicts.alike),
    ):
        more, less = found.paired(test_accuracy, {"norm": norm, "batch_size": 8}, {"norm": norm, "batch_size": 128})
        if more:
            names = ("batch 8", "batch 128")
            within = f"{claim} (within {verdicts.percent(ALIKE)}), {kind}"
            findings.append(rule(within, reported, more, less, margin=ALIKE, images=images, names=names))
    return findings


def _seconds(cell: dict[str, Any]) -> float:
    """Seconds of an epoch; the fastest, since other work on the machine only adds."""
    return float(min(record["seconds"] for record in cell["epochs"]))
