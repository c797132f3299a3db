"""Real cells as numbers: what each training of a large study reached, epoch by epoch and on the test images.

`python -m benchmarks.verdicts.cells RESULTS.json COMMAND NAME` makes the table NAME of a study's results.json,
which COMMAND made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).with_name("cells")


@dataclass(frozen=True)
class Table:
    """A study of norms by seeds: `val[norm]` is (seeds, epochs), `test[norm]` (seeds,), accuracies from 0 to 1."""

    name: str
    about: Mapping[str, Any]
    val: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(self.test)

    @property
    def seeds(self) -> int:
        return len(next(iter(self.test.values())))

    @property
    def epochs(self) -> int:
        return next(iter(self.val.values())).shape[1]


@cache
def table(name: str) -> Table:
    """A committed table: "digits", "cifar10" or "flowers"."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    cells = found.pop("cells")
    return Table(
        name,
        found,
        {norm: np.array([cell["val"] for cell in of]) for norm, of in cells.items()},
        {norm: np.array([cell["test"] for cell in of]) for norm, of in cells.items()},
    )


def tables() -> list[Table]:
    """All that are committed."""
    return [table(path.stem) for path in sorted(FOLDER.glob("*.json"))]


def extract(results: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a study whose cells are all done: one setting a norm, the same seeds for each."""
    environment, cells = results["environment"], results["cells"]
    by_norm: dict[str, list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        assert cell["status"] == "done", f"{cell['norm']}, seed {cell['seed']}: {cell['status']}"
        by_norm.setdefault(cell["norm"], []).append(
            {
                "seed": cell["seed"],
                "val": [round(epoch["val_accuracy"], 5) for epoch in cell["epochs"]],
                "test": round(cell["test"]["accuracy"], 5),
            }
        )
    first = cells[0]
    return {
        "data": Path(environment["data"]).name,
        "images": {part: environment[f"{part}_images"] for part in ("train", "val", "test")},
        "shape": environment["image_shape"],
        "classes": len(environment["class_names"]),
        "setting": {
            name: first[name]
            for name in ("model", "planned_epochs", "batch_size", "optimizer", "lr", "schedule", "augment")
        },
        "hardware": f"{environment['cpu']}, {environment['cores']} cores, one thread",
        "versions": {name: environment[name] for name in ("python", "numpy", "numba", "torch")},
        "cells": by_norm,
    }


def _lines(table: Mapping[str, Any]) -> str:
    """JSON with a line for each training, so that a change shows in a diff."""
    cells = table["cells"]
    head = json.dumps({name: value for name, value in table.items() if name != "cells"}, indent=1)
    rows = ",\n".join(
        f"  {json.dumps(norm)}: [\n" + ",\n".join(f"   {json.dumps(cell)}" for cell in of) + "\n  ]"
        for norm, of in cells.items()
    )
    return head.removesuffix("\n}") + ',\n "cells": {\n' + rows + "\n }\n}\n"


if __name__ == "__main__":
    results_json, command, name = sys.argv[1:]
    found = {"command": command, **extract(json.loads(Path(results_json).read_text()))}
    (FOLDER / f"{name}.json").write_text(_lines(found))
