"""Twenty scales of the initial weights, with and without batch normalization."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.reproduce import verdicts
from normlab.reproduce.charts import curves, side_by_side
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.training import fully_connected, train

NAMES = {"batchnorm": "batch norm", None: "no norm"}


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(300, 1000))
    epochs = setting.pick(2, 10)
    scales = np.logspace(-4, 0, setting.pick(6, 20))
    records = []
    for seed in range(setting.seeds):
        for scale in scales:
            setting.say(f"seed {seed}, weight scale {scale:.2g}")
            for norm, name in NAMES.items():
                result = train(
                    fully_connected(images, [50] * 7, normalization=norm, weight_scale=float(scale)),
                    images,
                    seed,
                    rule="adam",
                    lr=1e-3,
                    batch_size=50,
                    num_epochs=epochs,
                )
                records.append(
                    {
                        "norm": name,
                        "seed": seed,
                        "weight_scale": float(scale),
                        "best_train_accuracy": result.best_train,
                        "best_val_accuracy": result.best_val,
                    }
                )

    def per_seed(norm: str, value: str, of: str = "mean") -> list[float]:
        rows: list[list[Any]] = [
            [r[value] for r in records if r["norm"] == norm and r["seed"] == s] for s in range(setting.seeds)
        ]
        return [float(np.std(row) if of == "std" else np.mean(row)) for row in rows]

    pair = ("no norm", "batch norm")
    findings = [
        verdicts.greater(
            "batch norm is less sensitive: the standard deviation over the scales of the best training accuracy "
            "is larger without it",
            "BN is far less sensitive",
            per_seed("no norm", "best_train_accuracy", "std"),
            per_seed("batch norm", "best_train_accuracy", "std"),
            names=pair,
        )
    ]
    findings += [
        verdicts.greater(
            f"batch norm is better over the scales (best {title} accuracy, averaged over the scales)",
            "BN consistently better at extreme scales",
            per_seed("batch norm", value),
            per_seed("no norm", value),
            names=(pair[1], pair[0]),
        )
        for value, title in (("best_train_accuracy", "training"), ("best_val_accuracy", "validation"))
    ]
    charts = [
        curves(records, "weight_scale", value, "norm", log_x=True)
        for value in ("best_train_accuracy", "best_val_accuracy")
    ]
    return Result(
        findings,
        {
            "network": "seven hidden layers of 50, ReLU",
            "weight scales": f"{len(scales)} from 1e-4 to 1, evenly spaced in the logarithm",
            "training": f"Adam, learning rate 1e-3, {epochs} epochs, batch 50",
            "data": images.describe(),
        },
        charts={"scales": side_by_side(*charts)},
        captions={"scales": "Best accuracy of a training; mean over seeds, with its 95 % interval."},
        records=records,
    )
