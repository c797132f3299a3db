"""Two studies on one page: what each says, and how the norms that they share differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from normlab.errors import UsageError, files
from normlab.report import page, theme
from normlab.report.evidence import contenders, estimate
from normlab.report.figures import results
from normlab.report.figures.curves import curves
from normlab.report.figures.parts import Figure, Table, plus_minus
from normlab.report.layout import Group, Section
from normlab.report.records import Cell, Study, read
from normlab.report.sections import CURVES
from normlab.study.metric import DEFAULT, METRICS, Metric, metric_named
from normlab.study.statistics import compare_all


def write(first: Path, second: Path, *, metric: str | None = None, number: int | None = None) -> Path:
    """Write a page that compares two studies, into the first one's directory; returns its path.

    They are compared by `metric`, by default what both were judged by, or accuracy where they were judged by different
    ones. Of a first directory of several studies `number` says which.
    """
    by = None if metric is None else metric_named(metric)
    a, b = read(first, number), read(second)
    by = by or (a.metric if a.metric == b.metric else METRICS[DEFAULT])
    fields = contenders(a), contenders(b)
    if not all(fields):
        empty = first if not fields[0] else second
        raise UsageError(f"{empty} has no finished cell to compare")
    names = (str(first), str(second)) if a.name == b.name else (a.name, b.name)
    norms = list(dict.fromkeys([*a.norms, *b.norms]))
    styles = theme.styles(norms)
    shared = [norm for norm in fields[0] if norm in fields[1]]
    rows = [[norm, *_difference(fields[0][norm], fields[1][norm], by)] for norm in shared]
    result = Section(
        "result",
        "Norms that both trained",
        [
            f"{by.title[0].upper()}{by.title[1:]} in percent, each norm at its best setting on validation; differences "
            "are second minus first."
        ],
        [Table(["norm", *names, "difference [95 % interval]"], rows)] if rows else [],
        [Group("", _rankings(fields, names, styles, by))],
    )
    sections = [result, *_curve_pairs((a, b), fields, names, styles), _settings((a, b), names)]
    html = page.render(
        "report.html",
        figures={figure.key: figure.spec for section in sections for figure in section.figures},
        title=f"{names[0]} and {names[1]}",
        eyebrow=f"{names[0]} beside {names[1]}",
        headline=_headline(names, fields, shared, by),
        details=[f"{name}: {study.judged.sentence}" for name, study in zip(names, (a, b), strict=True)],
        best=None,
        warnings=_warnings(a, b),
        styles=styles,
        sections=sections,
    )
    target = first / f"beside-{second.resolve().name}.html"
    files.write_text(target, html)
    return target


def _headline(names: Sequence[str], fields: Sequence[dict[str, list[Cell]]], shared: Sequence[str], by: Metric) -> str:
    """Which of the norms in both studies are measurably different."""
    moved = []
    for norm in shared:
        low, high = _interval(fields[0][norm], fields[1][norm], by)
        if low > 0 or high < 0:
            moved.append((norm, "higher" if low > 0 else "lower"))
    if not shared:
        return "The two studies have no norm in common."
    if not moved:
        return f"No norm is measurably different in {names[1]} than in {names[0]}."
    parts = [f"{norm} is {how}" for norm, how in moved]
    rest = "; the rest is not measurably different." if len(moved) < len(shared) else "."
    return f"In {names[1]}, {', '.join(parts)} than in {names[0]}{rest}"


def _warnings(a: Study, b: Study) -> list[str]:
    found = []
    hashes = [study.environment.get("data_hash") for study in (a, b)]
    if hashes[0] != hashes[1]:
        found.append("The studies used different images; differences between them may be the images' doing.")
    if a.metric != b.metric:
        found.append(f"One was judged by {a.metric.title}, the other by {b.metric.title}.")
    if any(len(study.seeds) < 2 for study in (a, b)):
        found.append("With a single seed there is no interval, so nothing can be called different.")
    return found


def _difference(first: Sequence[Cell], second: Sequence[Cell], by: Metric) -> list[str]:
    scores = [estimate([by.of(cell.test) for cell in cells]) for cells in (first, second)]
    low, high = _interval(first, second, by)
    text = f"{100 * (scores[1].mean - scores[0].mean):+.1f}"
    if math.isfinite(low):
        text += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return [plus_minus(scores[0]), plus_minus(scores[1]), text.replace("-", "−")]


def _interval(first: Sequence[Cell], second: Sequence[Cell], by: Metric) -> tuple[float, float]:
    """The 95 % interval of second minus first, looked at once; NaN with a single seed."""
    x, y = ([by.of(cell.test) for cell in cells] for cells in (second, first))
    for found in compare_all({"second": x, "first": y}, looks=False):
        if found.difference.low is not None and found.difference.high is not None:
            return found.difference.low, found.difference.high
    return math.nan, math.nan


def _rankings(
    fields: Sequence[dict[str, list[Cell]]], names: Sequence[str], styles: theme.Styles, by: Metric
) -> list[Figure]:
    scores = [{norm: estimate([by.of(c.test) for c in cells]) for norm, cells in field.items()} for field in fields]
    reaches = [results.reach(found) for found in scores]
    domain = [min(low for low, _ in reaches), max(high for _, high in reaches)]
    return [
        results.ranking(cells, name, f"ranking-{i}", styles, by.title, wide=False, domain=domain, scores=found)
        for i, (cells, name, found) in enumerate(zip(fields, names, scores, strict=True))
    ]


def _curve_pairs(
    studies: Sequence[Study], fields: Sequence[dict[str, list[Cell]]], names: Sequence[str], styles: theme.Styles
) -> list[Section]:
    drawn = [
        curves(cells, column, f"{title}, {name}", f"curve-{column}-{i}", styles, share=share)
        for column, title, share in CURVES
        if all(column in study.done()[0].epochs[0] for study in studies)
        for i, (cells, name) in enumerate(zip(fields, names, strict=True))
    ]
    return [Section("curves", "How they learn", groups=[Group("", drawn)])] if drawn else []


def _settings(studies: Sequence[Study], names: Sequence[str]) -> Section:
    """The two environments and commands, line by line."""
    keys = list(dict.fromkeys(key for study in studies for key in study.environment))
    rows = [
        [key.replace("_", " "), *[str(study.environment.get(key, "–")) for study in studies]]
        for key in keys
        if not isinstance(studies[0].environment.get(key), dict | list)
    ]
    differing = [row for row in rows if row[1] != row[2]]
    text = "What is not the same in both." if differing else "Both ran in the same surroundings."
    return Section("provenance", "How they differ", [text], [Table(["", *names], differing)] if differing else [])
