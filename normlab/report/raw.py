"""The records that a report carries for download, cut down where the whole would make the file unwieldy."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Mapping
from typing import Any

from normlab.errors.files import to_json

MOST_BYTES = 400_000  # of the packed records in the page
_BULKY = ("features", "gradients")


def pack(text: str) -> str:
    """Text as base64 of gzip, always the same bytes for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def fitting(raw: Mapping[str, Any], most: int = MOST_BYTES) -> tuple[str, str]:
    """The records, packed, and what was left out of them ("" for nothing)."""
    packed, left_out = "", ""
    for left_out, smaller in _smaller(raw):  # noqa: B007 - the last one counts
        packed = pack(to_json(smaller))
        if len(packed) <= most:
            break
    return packed, left_out


def _smaller(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", raw
    yield "Distributions and gradients are left out of the download; the study's directory has them.", _cut(raw, 1)
    longest = max((len(cell.get("epochs") or []) for cell in raw["cells"]), default=0)
    step = 2
    while step < longest:
        yield (
            f"The download has every {step}th epoch, without distributions; the study's directory has all of them.",
            _cut(raw, step),
        )
        step *= 2
    yield "The download has the last epochs only; the study's directory has all of them.", _cut(raw, max(1, longest))


def _cut(raw: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """Every step-th epoch, counted from the last, without what is bulky."""
    cells = []
    for cell in raw["cells"]:
        epochs = (cell.get("epochs") or [])[::-1][::step][::-1]
        kept = [{key: value for key, value in epoch.items() if key not in _BULKY} for epoch in epochs]
        cells.append({**cell, "epochs": kept})
    return {**raw, "cells": cells}
