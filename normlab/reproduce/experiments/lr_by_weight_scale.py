"""Learning rate by weight scale: a grid of six, and a search that may try six."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normlab.errors import require
from normlab.reproduce import verdicts
from normlab.reproduce.charts import heat
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.training import fully_connected, train

RATES, SCALES = (2e-3, 1e-3, 1e-5), (5e-2, 1e-2)
MARGIN = 0.02
Cell = tuple[float, float]  # learning rate, weight scale


def run(setting: Setting) -> Result:
    optuna = _optuna()
    images = setting.images(setting.pick(500, 4000))
    epochs = setting.pick(2, 5)

    def best_val(seed: int, lr: float, weight_scale: float) -> float:
        setting.say(f"seed {seed}, learning rate {lr:.2g}, weight scale {weight_scale:.2g}")
        return train(
            fully_connected(images, [100] * 5, weight_scale=weight_scale),
            images,
            seed,
            rule="adam",
            lr=lr,
            batch_size=100,
            num_epochs=epochs,
        ).best_val

    records: list[dict[str, Any]] = []
    for seed in setting.seed_range:
        for lr in RATES:
            for scale in SCALES:
                accuracy = best_val(seed, lr, scale)
                records.append({"search": "grid", "seed": seed, "lr": lr, "weight_scale": scale, "accuracy": accuracy})
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

        def objective(trial: Any, seed: int = seed) -> float:
            lr = trial.suggest_float("lr", min(RATES), max(RATES), log=True)
            scale = trial.suggest_float("weight_scale", min(SCALES), max(SCALES), log=True)
            return best_val(seed, lr, scale)

        study.optimize(objective, n_trials=len(RATES) * len(SCALES))
        records += [
            {"search": "automatic", "seed": seed, **trial.params, "accuracy": trial.value} for trial in study.trials
        ]
    grid, automatic = (
        [_best(records, search, seed) for seed in setting.seed_range] for search in ("grid", "automatic")
    )
    cells = {
        (lr, scale): [
            r["accuracy"] for r in records if r["search"] == "grid" and (r["lr"], r["weight_scale"]) == (lr, scale)
        ]
        for lr in RATES
        for scale in SCALES
    }
    best, worst, rest = chosen_apart(cells)
    findings = [
        verdicts.greater(
            f"the settings matter: learning rate {best[0]:g}, weight scale {best[1]:g}, which was best on half of the "
            f"seeds, against the worst there, {worst[0]:g} and {worst[1]:g}, on the others (best validation accuracy)",
            verdicts.OURS,
            rest[best],
            rest[worst],
            images=len(images.y_val),
            names=("best", "worst"),
        ),
        *(
            verdicts.greater(
                f"a learning rate above 1e-3 lowers the accuracy: 2e-3 against 1e-3, weight scale {scale:g}",
                "learning rates above 1e-3 lower it",
                cells[1e-3, scale],
                cells[2e-3, scale],
                images=len(images.y_val),
                names=("1e-3", "2e-3"),
            )
            for scale in SCALES
        ),
        verdicts.greater(
            f"the automatic search is not worse than the grid (by more than {verdicts.percent(MARGIN)})",
            verdicts.OURS,
            automatic,
            grid,
            margin=MARGIN,
            names=("automatic", "grid"),
        ),
    ]
    title = "Best validation accuracy of the grid"
    return Result(
        findings,
        {
            "network": "five hidden layers of 100, ReLU",
            "training": f"Adam, {epochs} epochs, batch 100",
            "search": f"Optuna's TPE sampler, {len(cells)} trials as in the grid, within the grid's bounds",
            "data": images.describe(),
        },
        charts={
            "grid": heat([r for r in records if r["search"] == "grid"], "lr", "weight_scale", "accuracy", title=title)
        },
        captions={"grid": "Mean over seeds."},
        notes=[
            f"Best of the search, seed by seed: {', '.join(map(verdicts.percent, automatic))}; "
            f"of the grid: {', '.join(map(verdicts.percent, grid))}."
        ],
        records=records,
        scale=images.scale,
    )


def chosen_apart(cells: Mapping[Cell, Sequence[float]]) -> tuple[Cell, Cell, dict[Cell, list[float]]]:
    """The best and the worst cell by the first half of the seeds, and each cell's values at the other seeds.

    Who chooses the extremes of six equal cells on the seeds that then judge them finds a difference. With one seed
    nothing is left to judge, and that seed is shown.
    """
    half = len(next(iter(cells.values()))) // 2
    first = {cell: sum(values[:half]) for cell, values in cells.items()}
    ranked = sorted(cells, key=lambda cell: -first[cell])
    return ranked[0], ranked[-1], {cell: list(values[half:]) for cell, values in cells.items()}


def _best(records: list[dict[str, Any]], search: str, seed: int) -> float:
    return max(r["accuracy"] for r in records if r["search"] == search and r["seed"] == seed)


def _optuna() -> Any:
    require("lr-by-weight-scale", "study", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
