"""Tables as Markdown has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """Rows of equal keys as a Markdown table."""
    rows = list(rows)
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
