"""The report in other shapes: Markdown for a message or a README, and its charts as SVG for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.errors import files
from normlab.report import theme
from normlab.report.evidence import warnings
from normlab.report.figures.parts import Figure, Table
from normlab.report.layout import Section
from normlab.report.records import Study

SVG_WIDTH = 640


def markdown(study: Study, sections: Sequence[Section]) -> str:
    """Verdict, warnings and tables as Markdown; the charts of the first section become their tables."""
    lines = [f"# {study.name}", "", _text(study.judged.sentence)]
    lines += ["", *[f"> **Warning:** {_text(warning)}" for warning in warnings(study)]]
    for section in sections:
        tables = list(section.tables)
        if section.facts:
            tables.append(Table(["", ""], [list(pair) for pair in section.facts.items()]))
        if tables:
            lines += ["", f"## {_text(section.title)}", "", *[_text(paragraph) for paragraph in section.text]]
            for table in tables:
                lines += ["", *_table(table)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def write_svg(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Every chart as an SVG file in the light colours, named after it; returns the files."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for section in sections:
        for figure in section.figures:
            path = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', figure.key)}.svg"
            files.write_text(path, vl_convert.vegalite_to_svg(standalone(figure)))
            written.append(path)
    return written


def standalone(figure: Figure) -> dict[str, Any]:
    """A chart's specification without a page around it: its own size, title and colours."""
    spec = {**figure.spec, "width": SVG_WIDTH, "title": figure.title, "config": theme.config()}
    spec["$schema"] = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, not fetched
    resolved: dict[str, Any] = theme.resolved(spec)
    return resolved


def _table(table: Table) -> list[str]:
    head = "| " + " | ".join(map(_text, table.columns)) + " |"
    rule = "|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|"
    return [head, rule, *["| " + " | ".join(map(_text, row)) + " |" for row in table.rows]]


def _text(value: str) -> str:
    """Text that stays text in Markdown and in the HTML that Markdown lets through."""
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", escaped).replace("\n", " ")
