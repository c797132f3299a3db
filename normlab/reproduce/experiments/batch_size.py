"""Batch and layer normalization at three batch sizes, against a network without."""

from __future__ import annotations

from normlab.reproduce import verdicts
from normlab.reproduce.charts import curves, side_by_side
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.training import Curves, fully_connected, train

SIZES = (5, 10, 50)
NAMES = {"batchnorm": "BN", "layernorm": "LN"}


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(200, 1000))
    epochs = setting.pick(2, 10)
    cells: list[tuple[str | None, int]] = [(None, SIZES[0]), *((norm, size) for norm in NAMES for size in SIZES)]
    runs: dict[tuple[str | None, int], list[Curves]] = {cell: [] for cell in cells}
    records = []
    for seed in range(setting.seeds):
        for norm, size in cells:
            name = f"{NAMES[norm]}, batch {size}" if norm else f"no norm, batch {size}"
            setting.say(f"seed {seed}, {name}")
            result = train(
                fully_connected(images, [100] * 5, normalization=norm, weight_scale=5e-2),
                images,
                seed,
                rule="adam",
                lr=10**-3.5,
                batch_size=size,
                num_epochs=epochs,
            )
            runs[norm, size].append(result)
            records += result.records(cell=name, seed=seed)
    best = {cell: [result.best_train for result in results] for cell, results in runs.items()}
    spread = {
        norm: [abs(large - small) for large, small in zip(best[norm, 50], best[norm, 5], strict=True)] for norm in NAMES
    }
    findings = [
        verdicts.greater(
            "BN gains with the batch size: peak training accuracy at 50 against 5",
            "BN gains with batch size",
            best["batchnorm", 50],
            best["batchnorm", 5],
            names=("batch 50", "batch 5"),
        ),
        verdicts.greater(
            "BN suffers at batch 5: the plain baseline trains better",
            "BN suffers at 5",
            best[None, 5],
            best["batchnorm", 5],
            names=("no norm", "BN"),
        ),
        verdicts.greater(
            "LN hardly depends on it: between batch 5 and 50, BN's peak training accuracy changes more",
            "LN hardly depends on batch size",
            spread["batchnorm"],
            spread["layernorm"],
            names=("BN", "LN"),
        ),
    ]
    charts = [curves(records, "epoch", f"{part}_accuracy", "cell") for part in ("train", "val")]
    return Result(
        findings,
        {
            "network": "five hidden layers of 100, ReLU, weight scale 5e-2",
            "training": f"Adam, learning rate 10^-3.5, {epochs} epochs; the same images at each batch size, so "
            "ten times the steps at batch 5 as at 50",
            "data": images.describe(),
        },
        charts={"curves": side_by_side(*charts)},
        captions={"curves": "Mean over seeds, with its 95 % interval."},
        records=records,
    )
