"""A table of rows in total: means of ratios, rows that are lost, the share of the floor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from normlab.bench.work import size

Row = dict[str, Any]
SIDES = ("eager", "compiled")
CALL_ELEMENTS = 4096  # a shape of fewer elements shows what a call costs
_GROUPS: dict[str, Callable[[Row], str]] = {
    "form": lambda r: r["form"],
    "norm": lambda r: r["norm"],
    "layout": lambda r: r["layout"],
    "shape": lambda r: size(r["shape"]),
}


def summarize(rows: Sequence[Row], cache_bytes: int | None) -> dict[str, Any]:
    """Geometric means of torch's time over ours, the rows lost to each side, and medians of the floor's share.

    `without_calls` leaves out shapes of fewer than 4,096 elements, and so does `at_the_floor`, the mean of a layer
    that takes no longer than the floor. A row is above the cache if x alone is.
    """
    answer: dict[str, Any] = {"rows": len(rows)}
    for side in SIDES:
        ratio = f"{side}_ratio"
        there = [r for r in rows if r[ratio] is not None]
        if not there:
            continue
        lost = sorted((r for r in there if r[ratio] < 1), key=lambda r: r[ratio])
        answer[side] = {
            "geometric_mean": geometric_mean([r[ratio] for r in there]),
            "at_the_floor": geometric_mean([r[f"{side}_ms"] / r["floor_ms"] for r in there if not is_call(r)]),
            "without_calls": geometric_mean([r[ratio] for r in there if not is_call(r)]),
            "by": {name: _group_ratios(there, key, ratio) for name, key in _GROUPS.items()},
            "lost": [{"row": title(r), "ratio": r[ratio]} for r in lost],
        }
    above = [r["floor_share"] for r in rows if cache_bytes and r["tensor_bytes"] > cache_bytes]
    large = [r["floor_share"] for r in rows if not is_call(r)]
    answer["floor_share"] = {
        "cache_bytes": cache_bytes,
        "rows_above_cache": len(above),
        "above_cache": statistics.median(above) if above else None,
        "without_calls": statistics.median(large) if large else None,
    }
    return answer


def per_step(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Milliseconds of all normalizations of one training step, by layout: each row as often as the model does it."""
    answer = []
    for layout in dict.fromkeys(r["layout_asked"] for r in rows):
        chosen = [r for r in rows if r["layout_asked"] == layout]
        totals = {
            f"{side}_ms": sum(r["count"] * r[f"{side}_ms"] for r in chosen)
            for side in ("ours", *SIDES, "floor")
            if all(r[f"{side}_ms"] is not None for r in chosen)
        }
        answer.append({"layout": layout, "layers": sum(r["count"] for r in chosen), **totals})
    return answer


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """exp(mean(log(ratio))), or None of nothing."""
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None


def is_call(row: Row) -> bool:
    """Whether a row is so small that it shows the cost of a call."""
    return math.prod(row["shape"]) < CALL_ELEMENTS


def title(row: Row) -> str:
    """A row in a few words."""
    return f"{row['norm']}, {row['form']}, {size(row['shape'])}, {row['layout']}"


def _group_ratios(rows: Sequence[Row], key: Callable[[Row], str], ratio: str) -> dict[str, float | None]:
    names = dict.fromkeys(map(key, rows))
    return {name: geometric_mean([r[ratio] for r in rows if key(r) == name]) for name in names}
