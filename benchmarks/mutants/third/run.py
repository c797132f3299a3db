"""Run the kit on one layer of the third set, as a user would."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.mutants.base import module_from_source
from benchmarks.mutants.third.right_layers import Right
from normlab.check.engine import examine
from normlab.check.report import Report
from normlab.check.subjects import subject_of


def report_of(right: Right, source: str | None = None, only: Iterable[str] | None = None) -> Report:
    """The quick report on a right layer, or on a patched source of it."""
    text = right.source() if source is None else source
    module = module_from_source(text, f"_third_{right.file}")
    backward = getattr(module, right.backward) if right.backward else None
    subject = subject_of(getattr(module, right.target), right.target, backward, right.kind)
    return examine(subject, right.kind, quick=True, only=only)
