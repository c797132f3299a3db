"""Six norms on photographs, with three optimizers at two learning rates."""

from __future__ import annotations

from normlab.reproduce import comparisons, verdicts
from normlab.reproduce.charts import bars, training
from normlab.reproduce.comparisons import compare, curve_records, effort, scale_of, train_accuracy, val_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.published import PHOTOGRAPHS, PHOTOGRAPHS_EPOCHS, contradictions

REPORTED = {"bin": 0.9460, "bn": 0.9460, "gn": 0.7312, "in": 0.9031, "ln": 0.9186, "none": 0.8557}
SPEC = {
    "norms": list(REPORTED),
    "models": "resnet14",
    "image_size": 128,
    "epochs": 30,
    "batch_sizes": 32,
    "optimizers": "sgd,adam,rmsprop",
    "lrs": "0.001,0.0001",
    "schedule": "constant",
    "augment": "crop,flip",
}
SMALL = {**comparisons.SMALL, "epochs": 4, "limit_train": 2000}
QUICK = {"image_size": 8, "epochs": 1, "optimizers": "adam,sgd", "lrs": "0.001"}


def run(setting: Setting) -> Result:
    found = compare("photographs", setting, SPEC, QUICK)
    best = {}
    for norm in REPORTED:
        settings = {(c["optimizer"], c["lr"]) for c in found.finished(norm=norm)}
        if settings:
            best[norm] = max(settings, key=lambda s: _mean(found.values(val_accuracy, **_cell_filter(norm, s))))
    findings = []
    for claim, reported, one, other in (
        ("BN is better than no norm", "94.6 % against 85.6 %", "bn", "none"),
        ("BIN is better than no norm", "94.6 % against 85.6 %", "bin", "none"),
        ("LN is better than no norm", "91.9 % against 85.6 %", "ln", "none"),
        ("IN is better than no norm", "90.3 % against 85.6 %", "in", "none"),
        ("no norm is better than GN", "85.6 % against 73.1 %", "none", "gn"),
        ("BN is better than LN", "94.6 % against 91.9 %", "bn", "ln"),
        ("LN is better than IN", "91.9 % against 90.3 %", "ln", "in"),
        ("BN beats no norm on training images", _trained("bn", "none"), "bn", "none"),
        ("no norm beats GN on training images", _trained("none", "gn 32"), "none", "gn"),
        ("LN beats IN on training images", _trained("ln", "in"), "ln", "in"),
    ):
        if one in best and other in best:
            of, seen = (train_accuracy, "train_images") if "training" in claim else (val_accuracy, "val_images")
            more, less = found.paired(of, _cell_filter(one, best[one]), _cell_filter(other, best[other]))
            if more:
                count = found.environment[seen]
                findings.append(verdicts.greater(claim, reported, more, less, images=count, names=(one, other)))
    chosen = [c for norm, s in best.items() for c in found.finished(**_cell_filter(norm, s))]
    records = curve_records(chosen, lambda cell: cell["norm"])
    finals = [
        {
            "setting": f"{c['norm']}, {c['optimizer']}, {c['lr']:g}",
            "seed": c["seed"],
            "validation accuracy": val_accuracy(c),
        }
        for c in found.finished()
    ]
    return Result(
        findings,
        {
            "network": str(found.cells[0]["model"]),
            "training": f"{', '.join(sorted({c['optimizer'] for c in found.cells}))} at learning rates "
            f"{', '.join(f'{lr:g}' for lr in sorted({c['lr'] for c in found.cells}))}, constant; batch 32, "
            f"{found.length(SPEC)}; each norm at its best setting by validation: "
            + "; ".join(f"{norm} {optimizer} {lr:g}" for norm, (optimizer, lr) in best.items()),
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={
            "curves": training(records, "series", ("train_loss", "val_loss")),
            "settings": bars(
                finals, "validation accuracy", "setting", title="Validation accuracy of every setting", percent=True
            ),
        },
        captions={
            "curves": "Each norm at its best setting: mean over seeds, with its 95 % interval.",
            "settings": "Mean over seeds, with its 95 % interval.",
        },
        notes=[
            "The photographs of the report are not to be had; its figures are of other images, and its authors call "
            "them indicative.",
            *(f"The report contradicts itself. {said}" for said in contradictions(PHOTOGRAPHS, PHOTOGRAPHS_EPOCHS)),
            *found.unfinished(),
        ],
        records=finals,
        scale=scale_of(found, setting, SPEC, like="the report's photographs"),
        seconds=found.seconds,
    )


def _cell_filter(norm: str, setting: tuple[str, float]) -> dict[str, object]:
    return {"norm": norm, "optimizer": setting[0], "lr": setting[1]}


def _trained(one: str, other: str) -> str:
    """What the table of six norms says of two on training images."""
    rows = {row.network: row for row in PHOTOGRAPHS if (row.table, row.split) == ("six norms", "train")}
    return f"{verdicts.percent(rows[one].accuracy)} against {verdicts.percent(rows[other].accuracy)}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
