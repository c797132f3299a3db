"""From records to a report: one HTML file that opens anywhere. It reads and draws; it never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def verdict(results: Any) -> str:
    """The sentence that answers the study; `results` is a `results.json` document or a study's directory."""
    from normlab.report import evidence, records

    study = records.read(results) if isinstance(results, str | Path) else records.from_results(results)
    return str(evidence.verdict(study))


def write(directory: Path | str) -> Path:
    """Write `report.html` into a study's directory and answer its path.

    Raises UsageError where there is no study, DataError where its records cannot be understood.
    """
    from altair.utils.schemapi import debug_mode

    from normlab.report import evidence, page, raw, records, sections, theme

    study = records.read(directory)
    with debug_mode(False):  # charts are checked against the schema in tests, not at every drawing
        parts = sections.build(study)
    packed, left_out = raw.fitting(study.raw)
    parts.append(sections.provenance(study, left_out))
    answer = evidence.verdict(study)
    html = page.render(
        "report.html",
        figures={item.key: item.spec for part in parts for item in part.figures},
        raw=packed,
        title=f"{study.name}: which norm",
        eyebrow=" · ".join([study.name, _count(study.norms, "norm"), _count(study.seeds, "seed")]),
        verdict=answer,
        warnings=evidence.warnings(study),
        styles=theme.styles(study.norms),
        sections=parts,
    )
    target = Path(directory) / "report.html"
    target.write_text(html, encoding="utf-8")
    return target


def _count(items: list[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
