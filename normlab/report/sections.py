"""The report's sections: which figures and tables stand where, and the words between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normlab.report import figures
from normlab.report.evidence import contenders, estimate
from normlab.report.figures import Figure, Table
from normlab.report.records import Study

CURVES = (
    ("train_loss", "Training loss", False),
    ("val_loss", "Validation loss", False),
    ("train_accuracy", "Training accuracy", True),
    ("val_accuracy", "Validation accuracy (= micro-F1)", True),
    ("val_macro_f1", "Validation macro-F1", True),
)


@dataclass(frozen=True)
class Group:
    """Figures that are shown together; where a section has several groups, the reader picks one."""

    label: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    groups: Sequence[Group] = ()
    pick: str = "Shown:"
    layout: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    download: str = ""


def build(study: Study) -> list[Section]:
    """All sections for which the study has records."""
    return [section for make in (_result, _curves, _provenance) if (section := make(study))]


def _result(study: Study) -> Section | None:
    field_ = contenders(study)
    if not field_:
        return None
    columns = [
        ("test accuracy", "test_accuracy"),
        ("test macro-F1", "test_macro_f1"),
        ("val accuracy", "val_accuracy"),
        ("val macro-F1", "val_macro_f1"),
        ("train accuracy", "train_accuracy"),
    ]
    rows = []
    for norm, cells in field_.items():
        scores = [estimate([cell.value(column) for cell in cells]) for _, column in columns]
        setting = [study.label(cells[0].setting)] if len(study.settings) > 1 else []
        rows.append([norm, *setting, str(len(cells)), *map(figures.plus_minus, scores)])
    header = [
        "norm",
        *(["best setting"] if len(study.settings) > 1 else []),
        "seeds",
        *[name for name, _ in columns],
    ]
    text = [
        "Percent, mean ± 95 % interval over seeds. Train and validation are the last epoch's; the "
        "norm on top did best on validation, so that the test split judges a choice it had no part in."
    ]
    if len(study.settings) > 1:
        text[0] += " Each norm runs at the setting that was best for it on validation."
    ranked = [figures.ranking(study, setting) for setting in study.settings if study.done(setting=setting)]
    return Section(
        "result", "Which norm", text, [Table(header, rows)], [Group("", [f for f in ranked if f.table.rows])]
    )


def _curves(study: Study) -> Section | None:
    groups = []
    for setting in study.settings:
        drawn = [
            figures.curves(study, setting, column, title, share=share)
            for column, title, share in CURVES
            if any(column in epoch for cell in study.done(setting=setting) for epoch in cell.epochs[:1])
        ]
        if drawn:
            groups.append(Group(study.label(setting), drawn))
    if not groups:
        return None
    text = (
        "Thick lines are means over seeds, thin lines single seeds, bands 95 % intervals. With one label per "
        "image, micro-F1 and accuracy are the same number."
    )
    return Section("curves", "How they learn", [text], groups=groups, pick="Setting:")


def _provenance(study: Study) -> Section:
    facts = {"study": study.name, "cells": _cell_counts(study)}
    facts.update(_flat(study.environment))
    return Section("provenance", "Where these figures come from", facts=facts, download=f"{study.name}.json")


def _cell_counts(study: Study) -> str:
    counts = {status: sum(cell.status == status for cell in study.cells) for status in {c.status for c in study.cells}}
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    """An environment record as lines of text; nested objects become `name value` lists."""
    lines = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        lines[str(key).replace("_", " ")] = str(value)
    return lines
