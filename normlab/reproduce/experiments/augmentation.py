"""Against overfitting: augmentation, weight decay and both, with and without normalization."""

from __future__ import annotations

from typing import Any

from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars, training
from normlab.reproduce.comparisons import compare, curve_records, effort, scale_of, test_accuracy, train_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments import resnet_variants

DECAY = 5e-4
SPEC = {
    **resnet_variants.SPEC,
    "norms": "bn,gn,none",
    "augment": ["none", "crop,flip"],
    "weight_decays": [0.0, DECAY],
}
SMALL = {**resnet_variants.SMALL, "seeds": 5, "limit_train": 1000, "epochs": 20}
QUICK = {"batch_sizes": 16, "augment": ["none", "crop"], "norms": "bn,none"}


def run(setting: Setting) -> Result:
    found = compare("augmentation", setting, SPEC, QUICK)
    images = found.environment["test_images"]
    moved = next(cell["augment"] for cell in found.cells if cell["augment"] != "none")
    cures: dict[str, dict[str, Any]] = {
        "nothing": {"augment": "none", "weight_decay": 0.0},
        "augmentation": {"augment": moved, "weight_decay": 0.0},
        "weight decay": {"augment": "none", "weight_decay": DECAY},
        "both": {"augment": moved, "weight_decay": DECAY},
    }
    findings = []
    for norm in dict.fromkeys(cell["norm"] for cell in found.cells):
        for name, cure in list(cures.items())[1:]:
            with_, without = {"norm": norm, **cure}, {"norm": norm, **cures["nothing"]}
            better, worse = found.paired(test_accuracy, with_, without)
            narrow, wide = found.paired(gap, with_, without)
            if better:
                findings += [
                    verdicts.greater(
                        f"{norm}: {name} narrows the gap between training and test accuracy",
                        verdicts.OURS,
                        wide,
                        narrow,
                        images=images,
                        names=("nothing", name),
                    ),
                    verdicts.greater(
                        f"{norm}: test accuracy is higher with {name}",
                        "regularization and augmentation against overfitting: wished for",
                        better,
                        worse,
                        images=images,
                        names=(name, "nothing"),
                    ),
                ]

    def against(cell: dict[str, Any]) -> str:
        return next(name for name, cure in cures.items() if all(cell[k] == v for k, v in cure.items()))

    records = [
        {"cell": f"{c['norm']}, {against(c)}", "seed": c["seed"], "gap": gap(c), "test accuracy": test_accuracy(c)}
        for c in found.finished()
    ]
    curves = {norm: [c for c in found.finished() if c["norm"] == norm] for norm in {c["norm"] for c in found.cells}}
    return Result(
        findings,
        {
            "network": str(found.cells[0]["model"]),
            "training": f"SGD 0.1, momentum 0.9, {found.length(SPEC)}, batch {found.cells[0]['batch_size']}; "
            f"augmentation: {moved}; weight decay: {DECAY:g}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={
            "accuracy": bars(records, "test accuracy", "cell", title="Test accuracy", percent=True),
            **{
                f"curves-{norm}": training(curve_records(cells, against), "series", ("train_loss", "val_loss"))
                for norm, cells in sorted(curves.items())
                if cells
            },
        },
        captions={
            "accuracy": "Mean over seeds, with its 95 % interval.",
            **{f"curves-{norm}": f"{norm}: mean over seeds, with its 95 % interval." for norm in curves},
        },
        notes=[
            "The accuracy on training images is that of the training steps, hence of augmented images where there is "
            "augmentation.",
            *found.unfinished(),
        ],
        records=records,
        scale=scale_of(found, setting, SPEC),
        seconds=found.seconds,
    )


def gap(cell: dict[str, Any]) -> float:
    """How much more accurate a network is on training images than on test images."""
    return train_accuracy(cell) - test_accuracy(cell)
