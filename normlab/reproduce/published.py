"""The tables of the two reports on residual networks, as printed, and where they contradict themselves.

In a classification of one label per image the micro-F1 score is the accuracy; two networks that differ do not agree in
every figure; one training has one result; and there is no epoch after the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Row:
    """What was printed of a network on a split: loss (None where none was), accuracy, micro-F1 and macro-F1.

    `epoch` is the one after which it was printed, if it was said.
    """

    table: str
    network: str
    split: str
    loss: float | None
    accuracy: float
    micro_f1: float
    macro_f1: float
    epoch: int | None = None

    @property
    def figures(self) -> tuple[float | None, ...]:
        """All four."""
        return self.loss, self.accuracy, self.micro_f1, self.macro_f1


def _rows(table: str, split: str, printed: str) -> Iterable[Row]:
    """From lines of a name, perhaps a loss, and three scores."""
    for line in printed.strip().splitlines():
        name, *figures = line.split(";")
        accuracy, micro_f1, macro_f1 = (float(figure) for figure in figures[-3:])
        loss = float(figures[0]) if len(figures) == 4 else None
        yield Row(table, name, split, loss, accuracy, micro_f1, macro_f1)


VARIANTS = tuple(
    row
    for split, printed in {
        "train": "torch-bn;.970;.970;.970\nnone;.915;.915;.915\nbn;.977;.977;.977\nin;.923;.923;.923\n"
        "bin;.977;.977;.977\nln;.911;.911;.911\ngn;.937;.937;.937",
        "validation": "torch-bn;.881;.881;.880\nnone;.833;.833;.849\nbn;.880;.880;.880\nin;.851;.851;.851\n"
        "bin;.876;.876;.877\nln;.849;.849;.849\ngn;.861;.861;.861",
        "test": "torch-bn;.879;.879;.879\nnone;.849;.849;.848\nbn;.878;.878;.877\nin;.847;.847;.847\n"
        "bin;.881;.881;.881\nln;.849;.849;.848\ngn;.858;.858;.858",
    }.items()
    for row in _rows("seven variants", split, printed)
)
PHOTOGRAPHS_EPOCHS = 30
PHOTOGRAPHS = (
    Row("baseline", "SGD 1e-4", "train", 1.2794, 0.5398, 0.5345, 0.5109, epoch=50),
    Row("baseline", "SGD 1e-4", "validation", 1.3342, 0.5123, 0.5231, 0.5012, epoch=50),
    *_rows(
        "six norms",
        "train",
        "bin;.0895;.9699;.9699;.9699\nbn;.0895;.9699;.9699;.9699\ngn 32;.6752;.7907;.7907;.7909\n"
        "in;.3384;.8915;.8915;.8916\nln;.2533;.9158;.9158;.9158\nnone;.4160;.8720;.8720;.8721",
    ),
    *_rows(
        "six norms",
        "validation",
        "bin;.1874;.9460;.9460;.9468\nbn;.1874;.9460;.9460;.9468\ngn 32;.8649;.7312;.7312;.7424\n"
        "in;.3080;.9031;.9031;.9035\nln;.2631;.9186;.9186;.9189\nnone;.4589;.8557;.8557;.8566",
    ),
    *_rows(
        "batch sizes",
        "train",
        "bn 8;.1938;.9377;.9377;.9377\nbn 32;.5142;.8425;.8425;.8429\nbn 128;.4028;.8760;.8760;.8758\n"
        "gn 8;.1664;.9467;.9467;.9467\ngn 32;.3671;.9399;.9839;.9583\ngn 128;.3676;.9400;.9839;.9584",
    ),
    *_rows(
        "batch sizes",
        "validation",
        "bn 8;.5766;.9275;.9275;.9277\nbn 32;.5539;.8351;.8351;.8370\nbn 128;.5622;.8753;.8748;.8761\n"
        "gn 8;.1602;.9542;.9542;.9542\ngn 32;.8649;.7312;.7312;.7424\ngn 128;.3227;.9880;.9744;.9288",
    ),
)


def contradictions(rows: Sequence[Row], epochs: int | None = None) -> list[str]:
    """A sentence for each way in which tables of trainings of that many epochs cannot be right."""
    found = []
    for row in rows:
        if row.micro_f1 != row.accuracy:
            found.append(
                f"{row.table}, {row.network}, {row.split}: the micro-F1 score {row.micro_f1:.4f} is not the accuracy "
                f"{row.accuracy:.4f}, which it is where every image has one label."
            )
    for table, after in sorted({(row.table, row.epoch) for row in rows if epochs and (row.epoch or 0) > epochs}):
        found.append(f"{table}: printed after epoch {after} of trainings of {epochs} epochs.")
    by_network: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_network.setdefault((row.table, row.network), {})[row.split] = row
    for ((table, name), one), ((other_table, other_name), other) in combinations(by_network.items(), 2):
        alike = one.keys() == other.keys() and all(one[split].figures == other[split].figures for split in one)
        if table == other_table and alike:
            count = sum(figure is not None for row in one.values() for figure in row.figures)
            found.append(f"{table}: {name} and {other_name} agree in all {count} figures.")
        if name == other_name and table != other_table:
            found += [
                f"{name}, {split}: {table} has {_figures(one[split])}, {other_table} has {_figures(other[split])}."
                for split in one
                if split in other and one[split].figures != other[split].figures
            ]
    return found


def _figures(row: Row) -> str:
    return " ".join(f"{figure:.4f}" for figure in row.figures if figure is not None)
