"""Twenty scales of the initial weights, with and without batch normalization."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    records: list[dict[str, Any]] = []
    for seed in setting.seed_range:
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
                        "final_loss": result.epoch_losses[-1],
                    }
                )

    def per_seed(norm: str, value: str, of: Callable[[Any], Any] = np.mean, which: np.ndarray = scales) -> list[float]:
        """One number a seed: a statistic over the scales."""
        rows = ([r for r in records if r["norm"] == norm and r["seed"] == s] for s in setting.seed_range)
        return [float(of([r[value] for r in row if r["weight_scale"] in which])) for row in rows]

    pair = ("no norm", "batch norm")
    few = max(1, len(scales) // 4)
    ends = {
        f"the {few} smallest scales, up to {scales[few - 1]:.2g}": scales[:few],
        f"the {few} largest scales, from {scales[-few]:.2g} on": scales[-few:],
        "the largest scale, 1": scales[-1:],
    }
    findings = [
        verdicts.greater(
            "batch norm is less sensitive: the standard deviation over the scales of the best training accuracy "
            "is larger without it",
            "BN is less sensitive to the weight scale than the baseline",
            per_seed("no norm", "best_train_accuracy", np.std),
            per_seed("batch norm", "best_train_accuracy", np.std),
            images=len(images.y_train),
            names=pair,
        )
    ]
    findings += [
        verdicts.greater(
            f"batch norm is better at {where} (best {title} accuracy)",
            "BN consistently better at extreme scales",
            per_seed("batch norm", f"best_{part}_accuracy", which=which),
            per_seed("no norm", f"best_{part}_accuracy", which=which),
            images=len(seen),
            names=(pair[1], pair[0]),
        )
        for part, title, seen in (("train", "training", images.y_train), ("val", "validation", images.y_val))
        for where, which in ends.items()
    ]
    losses = [per_seed(name, "final_loss") for name in pair]
    if np.isfinite(losses).all():
        findings.append(
            verdicts.ratio(
                "the final training loss is lower with batch norm, averaged over the scales (without over with)",
                "final training loss lower with BN over weight scales",
                [without / with_ for without, with_ in zip(*losses, strict=True)],
                1.0,
            )
        )
    charts = [
        curves(records, "weight_scale", value, "norm", log_x=True)
        for value in ("best_train_accuracy", "best_val_accuracy")
    ]
    finite = [record for record in records if math.isfinite(record["final_loss"])]
    charts.append(curves(finite, "weight_scale", "final_loss", "norm", log_x=True, percent=False))
    return Result(
        findings,
        {
            "network": "seven hidden layers of 50, ReLU",
            "weight scales": f"{len(scales)} from 1e-4 to 1, evenly spaced in the logarithm",
            "training": f"Adam, learning rate 1e-3, {epochs} epochs, batch 50",
            "data": images.describe(),
        },
        charts={"scales": side_by_side(*charts)},
        captions={"scales": "Best accuracy and final loss of a training; mean over seeds, with its 95 % interval."},
        records=records,
        scale=images.scale,
    )
