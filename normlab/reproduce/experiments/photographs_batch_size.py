"""Batch and group norm at three batch sizes on photographs: the report's tables, and a chart for each norm."""

from __future__ import annotations

from typing import Any

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.comparisons import compare, curve_records, effort, scale_of, val_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments import photographs
from normlab.reproduce.published import PHOTOGRAPHS, contradictions

TABLE = "batch sizes"
REPORTED = {(row.network, row.split): row for row in PHOTOGRAPHS if row.table == TABLE}
NORMS, SIZES = ("bn", "gn"), (8, 32, 128)
SPEC = {
    **photographs.SPEC,
    "norms": list(NORMS),
    "batch_sizes": list(SIZES),
    "optimizers": "adam",
    "lrs": "0.001",
}
SMALL = {**photographs.SMALL, "seeds": 6}
QUICK = {"image_size": 8, "epochs": 2}
COMPARED = (("bn", 8, 32), ("bn", 128, 32), ("gn", 8, 32), ("gn", 128, 32), ("gn", 128, 8))  # better, worse


def run(setting: Setting) -> Result:
    found = compare("photographs-batch-size", setting, SPEC, QUICK)
    findings = []
    for norm, better, worse in COMPARED:
        more, less = found.paired(val_accuracy, *({"norm": norm, "batch_size": size} for size in (better, worse)))
        if more:
            findings.append(
                verdicts.greater(
                    f"{norm}: validation accuracy is higher at batch size {better} than at {worse}",
                    f"{_reported(norm, better)} against {_reported(norm, worse)}",
                    more,
                    less,
                    images=found.environment["val_images"],
                    names=(f"batch {better}", f"batch {worse}"),
                )
            )
    for norm in NORMS:
        for size in SIZES:
            if fallen := found.values(_loss_decrease, norm=norm, batch_size=size):
                findings.append(
                    verdicts.beyond(
                        f"{norm}, batch {size}: the training loss falls", "loss falls for all sizes", fallen, 0.0
                    )
                )
    cells = {norm: found.finished(norm=norm) for norm in NORMS}
    curves = {
        norm: curve_records(of_norm, lambda cell: f"batch {cell['batch_size']}") for norm, of_norm in cells.items()
    }
    return Result(
        findings,
        {
            "network": str(found.cells[0]["model"]),
            "training": f"Adam, learning rate {found.cells[0]['lr']:g}, constant; {found.length(SPEC)}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={norm: training(rows, "series", ("train_loss", "val_loss")) for norm, rows in curves.items() if rows},
        captions={norm: f"{norm} at every batch size: mean over seeds, with its 95 % interval." for norm in curves},
        notes=[
            "The photographs of the report are not to be had; its figures are of other images.",
            *(
                f"The report contradicts itself. {said}"
                for said in contradictions([row for row in PHOTOGRAPHS if row.table in (TABLE, "six norms")])
                if said.startswith((TABLE, "gn 32"))
            ),
            *found.unfinished(),
        ],
        records=[
            {"norm": cell["norm"], "batch_size": cell["batch_size"], "seed": cell["seed"], **_figures(cell)}
            for of_norm in cells.values()
            for cell in of_norm
        ],
        scale=scale_of(found, setting, SPEC, like="the report's photographs"),
        seconds=found.seconds,
    )


def _reported(norm: str, size: int) -> str:
    return verdicts.percent(REPORTED[f"{norm} {size}", "validation"].accuracy)


def _loss_decrease(cell: dict[str, Any]) -> float:
    """By how much the training loss of the last epoch is below that of the first."""
    losses = [record["train_loss"] for record in cell["epochs"]]
    return float(losses[0] - losses[-1])


def _figures(cell: dict[str, Any]) -> dict[str, float]:
    """The figures of the report's tables, after the last epoch."""
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_micro_f1", "val_macro_f1")
    return {name: cell["epochs"][-1][name] for name in names if name in cell["epochs"][-1]}
