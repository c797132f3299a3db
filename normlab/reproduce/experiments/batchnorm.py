"""A deep network on 1,000 images, with and without batch normalization."""

from __future__ import annotations

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.training import Curves, fully_connected, train

SMALL = {"seeds": 30}
NAMES = {"batchnorm": "batch norm", None: "no norm"}


def run(setting: Setting) -> Result:
    images = setting.images(1000)
    epochs = setting.pick(4, 10)
    runs: dict[str | None, list[Curves]] = {norm: [] for norm in NAMES}
    records = []
    for seed in setting.seed_range:
        for norm, name in NAMES.items():
            setting.say(f"seed {seed}, {name}")
            result = train(
                fully_connected(images, [100] * 5, normalization=norm, weight_scale=2e-2),
                images,
                seed,
                rule="adam",
                lr=1e-3,
                batch_size=50,
                num_epochs=epochs,
            )
            runs[norm].append(result)
            records += result.records(norm=name, seed=seed)
    findings = []
    for part, figures in (("train", {"batchnorm": 0.790, None: 0.714}), ("val", {"batchnorm": 0.354, None: 0.331})):
        title = {"train": "training", "val": "validation"}[part]
        best = {norm: [getattr(result, f"best_{part}") for result in runs[norm]] for norm in NAMES}
        findings.append(
            verdicts.greater(
                f"peak {title} accuracy is higher with batch norm than without",
                f"{verdicts.percent(figures['batchnorm'])} with, {verdicts.percent(figures[None])} without",
                best["batchnorm"],
                best[None],
                names=("with", "without"),
            )
        )
        comparable = images.original and not setting.quick
        findings += [
            verdicts.like_one_run(
                f"peak {title} accuracy, {name}",
                figures[norm],
                best[norm],
                original=comparable,
                drawn=len(images.y_val) if part == "val" else 0,
            )
            for norm, name in NAMES.items()
        ]
    return Result(
        findings,
        {
            "network": "five hidden layers of 100, ReLU, weight scale 2e-2",
            "training": f"Adam, learning rate 1e-3, {epochs} epochs, batch 50",
            "data": images.describe(),
        },
        charts={"curves": training(records, "norm")},
        captions={"curves": "Mean over seeds, with its 95 % interval."},
        notes=[
            "The report's validation images were the training images 49,001 to 50,000 of CIFAR-10; here they are the "
            "last thousand of the training images given; a thousand images show an accuracy of 33 % to within 3 points."
        ],
        records=records,
        scale=images.scale,
    )
