"""The rows and their summary as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from normlab.bench.summary import SIDES
from normlab.bench.work import Work, size
from normlab.report import columns

LEGEND = (
    "forward + backward of one layer; ms are medians of the rounds, in which the sides take turns; a ratio is torch's",
    'time over ours, the median of each round\'s, and "<" where ours is slower; the floor is the fewest bytes at the',
    "speed of a copy of a tensor of the same size",
)


class Table:
    """Prints rows as they are measured, in columns as wide as the longest of what is to come.

    The compiled side has columns only where it is timed, the count where a model has more than one of a kind.
    """

    def __init__(self, works: Sequence[Work], with_compiled: bool) -> None:
        self.sides = SIDES if with_compiled else SIDES[:1]
        self.counted = any(work.count != 1 for work in works)
        words = [["norm", "form", "shape"], *([w.norm, w.form, size(w.shape)] for w in works)]
        times, ratios = [11] * (2 + len(self.sides)), [14] * len(self.sides)
        self._widths = [*columns.widths(words), 14, *([3] if self.counted else []), *times, *ratios, 9]

    def head(self) -> str:
        """Names of the columns."""
        times = [f"{name} ms" for name in ("ours", *self.sides, "floor")]
        ratios = [f"{name}/ours " for name in self.sides]
        return self._line(["norm", "form", "shape", "layout"], ["x"], times, ratios, "of floor")

    def row(self, r: dict[str, Any]) -> str:
        """One row."""
        times = [f"{r[f'{name}_ms']:.3f}" for name in ("ours", *self.sides, "floor")]
        ratios = [_ratio(r[f"{name}_ratio"]) for name in self.sides]
        place = [r["norm"], r["form"], size(r["shape"]), r["layout"]]
        return self._line(place, [str(r["count"])], times, ratios, f"{100 * r['floor_share']:.0f} %")

    def _line(self, place: list[str], count: list[str], times: list[str], ratios: list[str], share: str) -> str:
        cells = [*place, *(count if self.counted else []), *times, *ratios, share]
        return columns.line(cells, self._widths, left={0, 1, 3})


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    """The summary, every lost row included."""
    for side in SIDES:
        if side not in summary:
            continue
        found = summary[side]
        mean = f"{side} / ours: geometric mean {found['geometric_mean']:.2f}x over {summary['rows']} rows"
        if found["without_calls"] not in (None, found["geometric_mean"]):
            mean += f"; {found['without_calls']:.2f}x without the shapes of next to no work"
        if found["at_the_floor"] is not None:
            mean += f" (at the floor it would be {found['at_the_floor']:.2f}x)"
        yield mean
        for name, groups in found["by"].items():
            if len(groups) > 1:
                yield f"  by {name}: " + ", ".join(f"{key} {value:.2f}x" for key, value in groups.items())
        lost = found["lost"]
        yield f"  {len(lost)} of {summary['rows']} rows lost to {side}" + (":" if lost else "")
        yield from (f"    {row['ratio']:.2f}x  {row['row']}" for row in lost)
    share = summary["floor_share"]
    cache = share["cache_bytes"]
    if share["without_calls"] is not None:
        yield f"share of the floor: median {100 * share['without_calls']:.0f} % without the shapes of next to no work"
    size_known = f"the last-level cache ({cache / 2**20:.0f} MiB)" if cache else ""
    if share["above_cache"] is not None:
        above = share["rows_above_cache"]
        yield f"  {100 * share['above_cache']:.0f} % over the {above} rows whose x is larger than {size_known}"
    elif cache:
        yield f"  no row's x is larger than {size_known}; --above-cache adds such a shape"


def per_step_lines(totals: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A model's normalizations in total."""
    for total in totals:
        times = [f"{name} {total[f'{name}_ms']:.2f} ms" for name in ("ours", *SIDES, "floor") if f"{name}_ms" in total]
        yield f"all {total['layers']} normalizations of a training step, {total['layout']}: {', '.join(times)}"


def _ratio(value: float) -> str:
    return f"{value:.2f}x{'<' if value < 1 else columns.BLANK}"
