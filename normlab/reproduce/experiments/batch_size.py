"""Batch and layer normalization at three batch sizes, against a network without."""

from __future__ import annotations

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.finding import Finding
from normlab.reproduce.training import Curves, fully_connected, train

SIZES = (5, 10, 50)
NAMES = {"batchnorm": "BN", "layernorm": "LN"}
ALIKE = 0.02
Cell = tuple[str | None, int]  # normalization, batch size


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(200, 1000))
    epochs = setting.pick(2, 10)
    cells: list[Cell] = [(None, SIZES[0]), *((norm, size) for norm in NAMES for size in SIZES)]
    runs: dict[Cell, list[Curves]] = {cell: [] for cell in cells}
    records = []
    for seed in setting.seed_range:
        for norm, size in cells:
            name = _name(norm, size)
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
    val = {cell: [result.best_val for result in results] for cell, results in runs.items()}
    spread = {
        norm: [abs(large - small) for large, small in zip(best[norm, 50], best[norm, 5], strict=True)] for norm in NAMES
    }

    def trains_better(claim: str, reported: str, one: Cell, other: Cell) -> Finding:
        return verdicts.greater(
            f"{claim}: peak training accuracy of {_name(*one)}, against {_name(*other)}",
            reported,
            best[one],
            best[other],
            images=len(images.y_train),
            names=(_name(*one), _name(*other)),
        )

    plain, largest = (None, SIZES[0]), ("batchnorm", SIZES[-1])
    findings = [
        trains_better("BN gains with the batch size", "larger batches help BN", largest, ("batchnorm", SIZES[0])),
        *(
            trains_better("BN at 50 trains best", "with norm at batch 50, the greatest training accuracy", largest, c)
            for c in (plain, ("batchnorm", SIZES[1]))
        ),
        *(
            trains_better(f"LN at {size} beats the baseline", "LN at 10 and 50 beat it", ("layernorm", size), plain)
            for size in SIZES[1:]
        ),
        *(
            verdicts.alike(
                f"validation is alike at batch 5 and 50 with {title} (within {verdicts.percent(ALIKE)})",
                "validation comparable over all",
                val[norm, SIZES[-1]],
                val[norm, SIZES[0]],
                margin=ALIKE,
                images=len(images.y_val),
                names=("batch 50", "batch 5"),
            )
            for norm, title in NAMES.items()
        ),
        trains_better("BN suffers at batch 5", verdicts.OURS, plain, ("batchnorm", SIZES[0])),
        verdicts.greater(
            "LN hardly depends on it: between batch 5 and 50, BN's peak training accuracy changes more",
            verdicts.OURS,
            spread["batchnorm"],
            spread["layernorm"],
            images=len(images.y_train),
            names=("BN", "LN"),
        ),
    ]
    of_norm = {norm: [r for r in records if r["cell"].startswith(("no norm", title))] for norm, title in NAMES.items()}
    return Result(
        findings,
        {
            "network": "five hidden layers of 100, ReLU, weight scale 5e-2",
            "training": f"Adam, learning rate 10^-3.5, {epochs} epochs; the same images at each batch size, so "
            "ten times the steps at batch 5 as at 50",
            "data": images.describe(),
        },
        charts={norm: training(rows, "cell") for norm, rows in of_norm.items()},
        captions={
            norm: f"{title} and no norm: mean over seeds, with its 95 % interval." for norm, title in NAMES.items()
        },
        records=records,
        scale=images.scale,
    )


def _name(norm: str | None, size: int) -> str:
    return f"{NAMES[norm]}, batch {size}" if norm else f"no norm, batch {size}"
