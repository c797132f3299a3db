"""From records to a report: one HTML file that opens anywhere. It reads and draws; it never trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.errors import UsageError, files

FORMATS = ("html", "md", "svg")


def verdict(results: Any, *, matters: float | None = None, number: int | None = None) -> str:
    """The study's conclusion in a sentence; `results` is a `results.json` document or a study's directory.

    A difference of accuracies below `matters` counts as none, by default what the study was given. Of a directory of
    several studies `number` says which, by default the one begun last.
    """
    from normlab.report import records

    study = records.read(results, number) if isinstance(results, str | Path) else records.from_results(results)
    return records.with_matters(study, matters).judged.sentence


def summary(directory: Path | str, number: int | None = None) -> str:
    """Verdict, a table of the norms, and warnings as plain text, for a terminal; `number` is that of `verdict`.

    Raises UsageError where there is no study, DataError where the records cannot be understood.
    """
    from normlab.report import records, terminal

    return terminal.summary(records.read(directory, number))


def write(
    directory: Path | str, format: str = "html", *, matters: float | None = None, number: int | None = None
) -> Path:
    """Write the report of a study into its directory and return where.

    "html" is one file, `report.html`; "md" the verdict and tables, `report.md`; "svg" a folder of charts,
    `report-svg/`. `matters` and `number` are those of `verdict`. Raises UsageError where there is no study or no
    such format, DataError where the records cannot be understood.
    """
    from altair.utils.schemapi import debug_mode

    from normlab.report import exports, raw, records, sections

    if format not in FORMATS:
        raise UsageError(f"--format {format!r} is not known; expected one of: {', '.join(FORMATS)}")
    directory = Path(directory)
    study = records.with_matters(records.read(directory, number), matters)
    with debug_mode(False):  # charts are checked against the schema in tests, not at every drawing
        parts = sections.build(study)
    if format == "svg":
        exports.write_svg(parts, directory / "report-svg")
        return directory / "report-svg"
    packed, left_out = raw.fitting(study.document)
    parts.append(sections.provenance(study, left_out))
    target = directory / f"report.{format}"
    text = exports.markdown(study, parts) if format == "md" else _html(study, parts, packed, directory)
    files.write_text(target, text)
    return target


def write_side_by_side(
    first: Path | str, second: Path | str, *, metric: str | None = None, number: int | None = None
) -> Path:
    """Write a page that compares two studies into the first one's directory; returns its path.

    `metric` is what they are compared by, by default what both were judged by; `number` says which study of the first
    directory. Raises UsageError where there is no study or no such metric.
    """
    from normlab.report import side_by_side

    return side_by_side.write(Path(first), Path(second), metric=metric, number=number)


def _html(study: Any, parts: Sequence[Any], packed: str, directory: Path) -> str:
    from normlab.report import evidence, page, theme

    return page.render(
        "report.html",
        figures={item.key: item.spec for part in parts for item in part.figures},
        raw=packed,
        title=f"{study.name}: which norm",
        eyebrow=" · ".join([study.name, _count(study.norms, "norm"), _count(study.seeds, "seed")]),
        headline=study.judged.sentence,
        best=study.judged.best,
        loading=_loading_lines(study, directory) if _keeps_weights(directory) else "",
        warnings=evidence.warnings(study),
        styles=theme.styles(study.norms),
        sections=parts,
    )


def _keeps_weights(directory: Path) -> bool:
    from normlab.study.keeping.checkpoint import FINAL
    from normlab.study.keeping.store import CHECKPOINTS

    return any((directory / CHECKPOINTS).glob(f"*/{FINAL}"))


def _loading_lines(study: Any, directory: Path) -> str:
    """The lines that load the network of the recommended norm, or else of the first, and use it."""
    which = f", {study.raw['study']}" if study.raw.get("studies", 1) > 1 else ""
    opened = f"normlab.open_study({str(directory)!r}{which})"
    return f'import normlab\n\nnet = {opened}.best.model()\nnet.predict("picture.jpg")'


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
