"""The results of `python -m benchmarks.gpu` as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from normlab.bench import machine
from normlab.bench.work import size

Row = dict[str, Any]


def page(results: dict[str, Any]) -> str:
    """All parts, and of each whether it came to its end."""
    lines = [f"# {machine.line(results['machine'])}", "", "`make gpu`" + (" (dry run)" * results["dry_run"]), ""]
    for name, part in results["parts"].items():
        why = f": {part['why']}" if "why" in part else ""
        lines += [f"## {name}", "", f"{part['state']}{why}, {part.get('seconds', 0)} s, {len(part['rows'])} rows", ""]
        good = [row for row in part["rows"] if "error" not in row]
        lines += SECTIONS[name](good) if good else []
        lines += [f"- error: {row.get('row', '')} {row['error']}" for row in part["rows"] if "error" in row]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; one column of words, then figures."""
    rule = ["---", *("--:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _layers(rows: Sequence[Row]) -> list[str]:
    """`normlab.bench.layers.measure`'s rows: ratios above 1 are ours."""
    header = ["row", "ours, ms", "of a copy's speed", "torch eager / ours", "torch.compile / ours"]
    lines = []
    for row in rows:
        name = f"{row['norm']}, {row['form']}, {size(row['shape'])}, {row['layout']}, {row['dtype']}"
        ratios = (row.get(key) for key in ("eager_ratio", "compiled_ratio"))
        lines.append([name, f"{row['ours_ms']:.3f}", f"{row['floor_share']:.0%}", *(_ratio(v) for v in ratios)])
    return table(header, lines)


def _kernels(rows: Sequence[Row]) -> list[str]:
    """In brackets, for how many passes over the tensor a copy of it would have had the time."""
    lines = []
    for row in rows:
        found = [f"{v['kernel']} {v['us']:.0f} ({v['passes']:.1f})" for v in row["launches"]]
        lines.append([f"{row['row']}, {row['dtype']}", f"{row['copy_us']:.0f}", ", ".join(found)])
    return table(["row", "copy, us", "launches, us (passes at a copy's speed)"], lines)


def _launches(rows: Sequence[Row]) -> list[str]:
    keys = [f"{side}_{what}_us" for what in ("forward", "both") for side in ("ours", "eager")]
    header = ["norm", "forward, ours, us", "torch", "with backward, ours, us", "torch"]
    return table(header, [[row["norm"], *(f"{row[key]:.1f}" for key in keys)] for row in rows])


def _step(rows: Sequence[Row]) -> list[str]:
    lines = table(
        ["step", "ms"], [[f"{row['dtype']}, {row['side']}, {row['how']}", f"{row['ms']:.3f}"] for row in rows]
    )
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        best = {
            side: min((row["ms"] for row in rows if (row["dtype"], row["side"]) == (dtype, side)), default=None)
            for side in ("stock", "ours")
        }
        if best["stock"] and best["ours"]:
            lines += ["", f"{dtype}: the best of torch's over the best of ours: {best['stock'] / best['ours']:.2f}x"]
    return lines


def _compare(rows: Sequence[Row]) -> list[str]:
    return [line for row in rows for line in _format_printed(row)]


def _format_printed(row: Row) -> Iterator[str]:
    yield from (f"`{row['command']}`: {row['seconds']:.1f} s", "", "```", *row["printed"].splitlines(), "```", "")


def _tests(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row["outcome"] for row in rows)
    failed = [f"- {row['outcome']}: `{row['test']}`" for row in rows if row["outcome"] in ("failed", "error")]
    return [", ".join(f"{count} {outcome}" for outcome, count in counts.items()), "", *failed]


def _ratio(v: float | None) -> str:
    return "" if v is None else f"{v:.2f}x"


SECTIONS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "layers": _layers,
    "positions": _layers,
    "kernels": _kernels,
    "launches": _launches,
    "tests": _tests,
    "step": _step,
    "compare": _compare,
}
