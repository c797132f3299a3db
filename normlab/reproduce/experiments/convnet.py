"""The small convolutional network: overfits 100 images; with and without spatial normalization."""

from __future__ import annotations

from functools import partial

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.images import Images
from normlab.reproduce.training import Curves, train
from normlab.scratch.nets import ConvNet

SMALL = {"seeds": 10}
NAMES = {None: "no norm", "batchnorm": "batch norm", "groupnorm": "group norm"}


def run(setting: Setting) -> Result:
    few = setting.images(100, setting.pick(100, 1000))
    many = setting.images(setting.pick(200, 1000, 500), setting.pick(100, 1000))
    filters = setting.pick(8, 32, 16)
    long, short = 15, setting.pick(3, 10)
    overfit, records = [], []
    runs: dict[str | None, list[Curves]] = {norm: [] for norm in NAMES}
    for seed in setting.seed_range:
        setting.say(f"seed {seed}, 100 images")
        result = _train(few, seed, None, filters, long)
        overfit.append(result)
        records += result.records(cell="no norm, 100 images", seed=seed)
        for norm, name in NAMES.items():
            setting.say(f"seed {seed}, {name}")
            result = _train(many, seed, norm, filters, short)
            runs[norm].append(result)
            records += result.records(cell=name, seed=seed)
    findings = [
        verdicts.beyond(
            "the network overfits 100 images: peak training accuracy",
            "training accuracy high",
            [result.best_train for result in overfit],
            0.9,
            show=verdicts.percent,
        ),
        verdicts.greater(
            "and its validation stays flat: from the first epoch on, training accuracy rises more than validation does",
            "validation flat on a small set",
            [result.train[-1] - result.train[1] for result in overfit],
            [result.val[-1] - result.val[1] for result in overfit],
            names=("training", "validation"),
        ),
    ]
    findings += [
        verdicts.greater(
            f"it trains faster with {NAMES[norm]} (training accuracy, averaged over the epochs)",
            verdicts.OURS,
            [sum(result.train[1:]) / short for result in runs[norm]],
            [sum(result.train[1:]) / short for result in runs[None]],
            names=(NAMES[norm], NAMES[None]),
        )
        for norm in ("batchnorm", "groupnorm")
    ]
    small = [record for record in records if "100 images" in record["cell"]]
    large = [record for record in records if "100 images" not in record["cell"]]
    return Result(
        findings,
        {
            "network": f"conv 7x7, {filters} filters - [norm] - ReLU - 2x2 max pool - affine 100 - ReLU - affine",
            "training": f"Adam, learning rate 1e-3, weight scale 1e-2, batch 50; {long} epochs on 100 images, "
            f"{short} on {len(many.X_train)}",
            "data": many.describe(),
        },
        charts={
            "overfitting": training(small, "cell"),
            "normalization": training(large, "cell"),
        },
        captions={
            "overfitting": "100 training images; mean over seeds, with its 95 % interval.",
            "normalization": f"{len(many.X_train)} training images, with and without normalization.",
        },
        records=records,
        scale=", ".join(filter(None, [setting.pick("", "", "16 filters instead of 32, 500 images"), many.scale])),
    )


def _train(images: Images, seed: int, norm: str | None, filters: int, epochs: int) -> Curves:
    return train(
        partial(ConvNet, images.shape, filters, 7, 100, images.num_classes, weight_scale=1e-2, normalization=norm),
        images,
        seed,
        rule="adam",
        lr=1e-3,
        batch_size=50,
        num_epochs=epochs,
    )
