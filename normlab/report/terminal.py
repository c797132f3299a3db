"""The report in a few lines of plain text: what `normlab compare` ends with."""

from __future__ import annotations

import textwrap

from normlab.report import columns
from normlab.report.evidence import accuracies, contenders, estimate, warnings
from normlab.report.figures.parts import Table, plus_minus
from normlab.report.figures.results import speed
from normlab.report.records import Study

WIDTH = 100


def summary(study: Study) -> str:
    """The verdict, a row for every norm at its best setting, and the warnings; the words are the report's."""
    blocks = [textwrap.fill(study.judged.sentence, WIDTH)]
    if contenders(study):
        blocks.append(aligned(norms_table(study)))
    if said := warnings(study):
        wrapped = (textwrap.fill(f"warning: {text}", WIDTH, subsequent_indent="  ") for text in said)
        blocks.append("\n".join(wrapped))
    return "\n\n".join(blocks)


def norms_table(study: Study) -> Table:
    """What is compared and one figure beside it, in percent, and speed; dashes where no training finished."""
    several = len(study.settings) > 1
    field = contenders(study)
    accuracy = accuracies(study, field)
    rows = []
    column, beside = ("test_macro_f1", "macro-F1 (%)")
    if study.metric.column == "macro_f1":
        column, beside = ("test_accuracy", "accuracy (%)")
    scale, digits = 100.0, 1
    if study.metric.column == "loss":
        column, beside, scale, digits = "test_loss", "test loss", 1.0, 3
    for norm, cells in field.items():
        found = estimate([c.value(column) for c in cells])
        scores = [plus_minus(accuracy[norm]), plus_minus(found, scale, digits)]
        at = [study.label(cells[0].setting)] if several else []
        rows.append([norm, str(len(cells)), *scores, plus_minus(estimate([speed(c) for c in cells]), 1, 0), *at])
    rows += [[norm, "0", *"–––", *(["–"] if several else [])] for norm in study.norms if norm not in field]
    names = ["norm", "seeds", f"{study.metric.title} (%)", beside, "images/s"]
    return Table([*names, *(["best setting"] if several else [])], rows)


def aligned(table: Table) -> str:
    """The table as text: names to the left, figures to the right, and the setting to the left again."""
    return "\n".join(columns.lines([table.columns, *table.rows], left={0, 5}))
