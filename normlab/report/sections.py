"""The report's sections: which figures and tables stand where, and the words between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from normlab.report import theme
from normlab.report.evidence import accuracies, contenders, estimate
from normlab.report.explained import explained_sections
from normlab.report.figures import inside, results
from normlab.report.figures.curves import curves
from normlab.report.figures.parts import MOST_NORMS, Figure, Table, percent, plus_minus
from normlab.report.layout import Group, Section
from normlab.report.records import Cell, Study
from normlab.report.theme import Styles
from normlab.study.plain import escaped
from normlab.study.verdict import Verdict, in_points

CURVES = (
    ("train_loss", "Training loss", False),
    ("val_loss", "Validation loss", False),
    ("train_accuracy", "Training accuracy", True),
    ("val_accuracy", "Validation accuracy (= micro-F1)", True),
    ("train_macro_f1", "Training macro-F1", True),
    ("val_macro_f1", "Validation macro-F1", True),
)
COLUMNS = (
    ("test accuracy", "test_accuracy"),
    ("test macro-F1", "test_macro_f1"),
    ("val accuracy", "val_accuracy"),
    ("val macro-F1", "val_macro_f1"),
    ("train accuracy", "train_accuracy"),
)
MOST_GROUPS = 8  # settings whose curves are drawn; the heat map shows all

Chosen = Mapping[str, Sequence[Cell]]


def build(study: Study) -> list[Section]:
    """The sections for which the study has records."""
    styles, chosen = theme.styles(study.norms), contenders(study)
    makers = (_result, _settings, _curves, _cost, _features, _explained_part, _confusion)
    found = [section for make in makers if chosen and (section := make(study, chosen, styles))]
    return [s for section in found for s in (section if isinstance(section, list) else [section])]


def _result(study: Study, chosen: Chosen, styles: Styles) -> Section:
    several = len(study.settings) > 1
    text = [
        "Percent, mean ± 95 % interval over seeds, of the trainings that learned. The norm on top is the one to use. "
        "Train and validation are those of the last epoch."
    ]
    if several:
        text.append("Each norm runs at the setting that was best for it on validation.")
    if len(study.seeds) > 1:
        text.append(
            "An interval beside a norm is for that figure alone. The differences below decide: their intervals hold "
            "together, for all pairs of norms and at every number of seeds up to this one."
        )
    table = main_table(study, chosen)
    tables, more = [table], None
    if len(chosen) > MOST_NORMS:
        tables = [replace(table, rows=table.rows[:MOST_NORMS])]
        more = (f"The other {len(chosen) - MOST_NORMS} norms", replace(table, rows=table.rows[MOST_NORMS:]))
    if study.judged.differences:
        tables.append(_differences(study.judged))
    metric = study.metric.title
    title = metric[0].upper() + metric[1:] + (", each norm at its best setting" if several else "")
    judged = accuracies(study, contenders(study))
    return Section(
        "result",
        "Which norm",
        text,
        tables,
        [
            Group(
                "",
                [results.ranking(chosen, title, "ranking", styles, scores=judged, floors=study.judged.floors)],
            )
        ],
        more=more,
    )


def main_table(study: Study, chosen: Chosen) -> Table:
    """Accuracy and F1 of every norm, mean ± 95 % interval."""
    several = len(study.settings) > 1
    judged = accuracies(study, contenders(study))
    others = [(name, column) for name, column in COLUMNS if column != f"test_{study.metric.column}"]
    rows = []
    for norm, cells in chosen.items():
        scores = [judged[norm], *(estimate([cell.value(column) for cell in cells]) for _, column in others)]
        setting = [study.label(cells[0].setting)] if several else []
        rows.append([norm, *setting, str(len(cells)), *map(plus_minus, scores)])
    blank = ["–"] * len(others)
    rows += [[f"({n})", *(["–"] if several else []), "–", percent(v), *blank] for n, v in study.judged.floors.items()]
    header = [
        "norm",
        *(["best setting"] if several else []),
        "seeds",
        study.metric.title,
        *[name for name, _ in others],
    ]
    return Table(header, rows)


def _differences(judged: Verdict) -> Table:
    """How far each norm is from the one to use, and what that is enough for."""
    rows = []
    for norm, found in judged.differences.items():
        (c,) = (c for c in judged.comparisons if {c.a, c.b} == {judged.best, norm})
        state = (
            ("ahead" if found.mean > 0 else "behind") if c.detectable else "the same" if c.same else "not distinguished"
        )
        rows.append([norm, in_points(found), state])
    return Table(["norm", f"points from {judged.best} [simultaneous 95 % interval]", "verdict"], rows)


def _settings(study: Study, chosen: Chosen, styles: Styles) -> Section | None:
    """Rankings per batch size and the heat map, where there is more than one setting."""
    if len(study.settings) < 2:
        return None
    drawn: list[Figure] = [results.heatmap(study, list(chosen))]
    sizes = sorted({cell.axes["batch_size"] for cell in study.done() if "batch_size" in cell.axes})
    at_sizes = {
        size: best_per_norm([cell for cell in study.done() if cell.axes.get("batch_size") == size])
        for size in sizes
        if len(sizes) > 1
    }
    reaches = [results.reach(results.ranked(cells, "test_accuracy")) for cells in at_sizes.values()]
    domain = [min(low for low, _ in reaches), max(high for _, high in reaches)] if reaches else None
    groups = [
        results.ranking(cells, f"Batch size {size}", f"ranking-{size}", styles, wide=False, domain=domain)
        for size, cells in at_sizes.items()
    ]
    text = ["Stronger colour is better. Choosing is for the validation split; the test split is not shown here."]
    if groups:
        text.append("Below, the norms at each batch size, on the test split.")
    return Section("settings", "Where each norm works", text, groups=[Group("", [*drawn, *groups])])


def best_per_norm(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Of these finished cells, every norm's at the setting where its validation accuracy is highest."""
    answer = {}
    for norm in dict.fromkeys(cell.norm for cell in cells):
        by_setting: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            if cell.norm == norm:
                by_setting.setdefault(cell.setting, []).append(cell)
        answer[norm] = max(
            by_setting.values(), key=lambda group: estimate([c.last("val_accuracy") for c in group]).mean
        )
    return answer


def _curves(study: Study, chosen: Chosen, styles: Styles) -> Section | None:
    recorded = [entry for entry in CURVES if any(entry[0] in cell.epochs[0] for cell in study.done())]

    def group(label: str, cells: Chosen, name: str) -> Group:
        return Group(
            label, [curves(cells, c, title, f"curve-{c}-{name}", styles, share=share) for c, title, share in recorded]
        )

    if len(study.settings) == 1:
        groups = [group("", chosen, "0")]
    else:
        order = sorted(
            study.settings,
            key=lambda s: -max([c.last("val_accuracy") for c in study.done(setting=s)], default=-1.0),
        )
        groups = [group("each norm at its best setting", chosen, "best")]
        for index, setting in enumerate(order[:MOST_GROUPS]):
            at = {norm: cells for norm in chosen if (cells := study.done(norm, setting))}
            groups.append(group(study.label(setting), at, str(index)))
    text = [
        "Thick lines are means over seeds, thin lines single seeds, bands 95 % intervals (from three seeds on). "
        "With one label per image, micro-F1 and accuracy are the same number."
    ]
    if len(study.settings) > MOST_GROUPS:
        text.append(f"Of {len(study.settings)} settings, the best {MOST_GROUPS} are drawn.")
    return Section("curves", "How they learn", text, groups=groups, pick="Setting")


def _cost(study: Study, chosen: Chosen, styles: Styles) -> Section | None:
    if not any("images_per_second" in cell.epochs[0] for cell in study.done()):
        return None
    text = "Medians over epochs on the machine named below; other programs running beside the study show up here."
    figure = results.cost(chosen, styles)
    return Section("cost", "What they cost", [text], [results.cost_table(chosen)], [Group("", [figure])])


def _features(study: Study, chosen: Chosen, styles: Styles) -> Section | None:
    names = inside.layers(chosen)
    slope = inside.gradients(chosen, styles)
    groups = []
    for index, name in enumerate(names):
        label = "before the classifier" if name == "features" else f"last norm of {name}" if "stage" in name else name
        if panels := inside.drift(chosen, name, styles, f"drift-{index}"):
            groups.append(Group(label, panels))
    if not groups and slope is None:
        return None
    text = [
        "What a layer sees, on the same validation images after every epoch, before it is normalized: the median, the "
        "middle 60 % and the middle 98 % of all values, first seed. Where nothing holds them, features drift."
    ]
    return Section(
        "features",
        "How features drift",
        text if groups else [],
        groups=groups[::-1],  # the features before the classifier say most, so they come first
        pick="Layer",
        layout="three",
        after=[slope] if slope else [],
    )


def _explained_part(study: Study, chosen: Chosen, styles: Styles) -> list[Section] | None:
    return explained_sections(study.explained, styles) if study.explained else None


def _confusion(study: Study, chosen: Chosen, styles: Styles) -> Section | None:
    """Confusion matrices of the test split, summed over seeds."""
    classes = [str(name) for name in study.environment.get("class_names") or []]
    groups = []
    for index, (norm, cells) in enumerate(list(chosen.items())[:MOST_NORMS]):
        counts = [cell.test["confusion"] for cell in cells if cell.test.get("confusion")]
        if counts and len(counts[0]) == len(classes):
            total = [[sum(rows) for rows in zip(*lines, strict=True)] for lines in zip(*counts, strict=True)]
            groups.append(inside.confusion(total, classes, norm, f"confusion-{index}"))
    if not groups or (study.explained or {}).get("confusion"):
        return None
    text = ["Test images of all seeds, percent of each true class; mistakes below half a percent bear no number."]
    return Section("confusion", "What is mistaken for what", text, groups=[Group("", groups)])


def provenance(study: Study, left_out: str = "") -> Section:
    """Where the figures come from, and the records for download; `left_out` says what the records lack."""
    facts = {"study": study.name, "cells": _cell_counts(study)}
    attempts = [int(cell.extra["attempts"]) for cell in study.cells if isinstance(cell.extra.get("attempts"), int)]
    if attempts:
        resumed = sum(count > 1 for count in attempts)
        facts["resumed"] = f"{resumed} of {len(attempts)} cells were interrupted or failed and taken up again"
    facts.update(_flat(study.environment))
    return Section(
        "provenance",
        "Where these figures come from",
        [left_out] if left_out else [],
        facts=facts,
        download=f"{study.name}.json",
    )


def _cell_counts(study: Study) -> str:
    counts: dict[str, int] = {}
    for cell in study.cells:
        counts[cell.status] = counts.get(cell.status, 0) + 1
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    """An environment record as lines of text; nested objects become `name value` lists."""
    lines = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list | tuple):
            value = ("; " if key == "notes" else ", ").join(map(str, value))
        elif str(key).endswith("_bytes") and isinstance(value, int):
            key, value = str(key).removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        if value not in (None, ""):
            lines[str(key).replace("_", " ")] = escaped(str(value))
    return lines
