"""Dropout: the gap between training and validation, the two kinds, and dropout with normalization."""

from __future__ import annotations

import numpy as np

from normlab.reproduce import verdicts
from normlab.reproduce.charts import heat, training
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.finding import Finding
from normlab.reproduce.training import Curves, fully_connected, train
from normlab.scratch.layers import dropout_forward

SMALL = {"seeds": 20}
KEEPS = (1.0, 0.25)
NORMS = {None: "no norm", "batchnorm": "batch norm", "layernorm": "layer norm"}


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(200, 500))
    epochs = setting.pick(5, 25)
    runs: dict[tuple[str | None, float], list[Curves]] = {}
    plain, combined = [], []
    for seed in setting.seed_range:
        for norm, name in NORMS.items():
            for keep in KEEPS:
                setting.say(f"seed {seed}, {name}, keep {keep:g}")
                result = train(
                    fully_connected(images, [500], dropout_keep=keep, normalization=norm),
                    images,
                    seed,
                    rule="adam",
                    lr=5e-4,
                    batch_size=100,
                    num_epochs=epochs,
                )
                runs.setdefault((norm, keep), []).append(result)
                cell = {"keep": f"keep {keep:g}", "seed": seed}
                if norm is None:
                    plain += result.records(**cell)
                combined.append(
                    {
                        **cell,
                        "norm": name,
                        "best_val_accuracy": result.best_val,
                        "gap": result.train[-1] - result.val[-1],
                    }
                )

    def of(norm: str | None, keep: float, value: str) -> list[float]:
        return [
            result.train[-1] - result.val[-1] if value == "gap" else getattr(result, value)
            for result in runs[norm, keep]
        ]

    pair = ("keep 1", "keep 0.25")
    findings = [
        verdicts.greater(
            f"dropout narrows the gap between training and validation accuracy, {name}",
            "dropout narrows the gap" if norm is None else verdicts.OURS,
            of(norm, 1.0, "gap"),
            of(norm, 0.25, "gap"),
            names=pair,
        )
        for norm, name in NORMS.items()
    ]
    findings.append(
        verdicts.greater(
            "without normalization, validation accuracy is higher with dropout",
            "validation generally higher with keep 0.25",
            of(None, 0.25, "best_val"),
            of(None, 1.0, "best_val"),
            names=(pair[1], pair[0]),
        )
    )
    findings.append(_kinds(setting.pick(500, 5000), len(setting.seed_range)))
    title = "Best validation accuracy"
    return Result(
        findings,
        {
            "network": "one hidden layer of 500, [norm], ReLU, inverted dropout, weight scale 1e-2",
            "training": f"Adam, learning rate 5e-4, {epochs} epochs, batch 100",
            "data": images.describe(),
        },
        charts={
            "curves": training(plain, "keep"),
            "with-normalization": heat(combined, "norm", "keep", "best_val_accuracy", title=title),
        },
        captions={
            "curves": "Without normalization; mean over seeds, with its 95 % interval.",
            "with-normalization": "Dropout together with normalization, mean over seeds.",
        },
        records=[*plain, *combined],
        scale=images.scale,
    )


def _kinds(masks: int, seeds: int) -> Finding:
    """The mean output of each kind of dropout over many masks, against its output in testing."""
    errors: dict[str, list[float]] = {"inverted": [], "vanilla": []}
    for seed in range(seeds):
        rng = np.random.RandomState(seed)
        x = rng.randn(50, 50) + 10
        for kind, list_ in errors.items():
            param = {"p": 0.25, "mode": "train", "kind": kind, "rng": rng}
            mean = sum(dropout_forward(x, param)[0].mean() for _ in range(masks)) / masks
            test = dropout_forward(x, {**param, "mode": "test"})[0].mean()
            list_.append(abs(float(mean / test) - 1))
    # a mean of `masks` * 2,500 elements kept with probability p is this uncertain, relatively
    bound = 4 * float(np.sqrt(0.75 / 0.25 / (masks * 2500)))
    largest = max(max(values) for values in errors.values())
    return verdicts.exact(
        "vanilla and inverted dropout both have in training the expectation that they answer in testing",
        "the same expectation",
        f"relative difference at most {largest:.1g} over {masks} masks",
        largest < bound,
        f"holds if both differ by less than {bound:.1g}, four standard errors of such a mean",
    )
