"""The rows as a roofline: bytes moved a second, against the size of x, under the copies of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.bench.summary import SIDES
from normlab.errors import UsageError, files, require
from normlab.report import theme

_COLOURS = {"ours": theme.LIGHT["c0"], "eager": theme.LIGHT["c1"], "compiled": theme.LIGHT["c3"]}
_WIDTH = 190
_SHAPES = {"channels_first": "circle", "channels_last": "triangle-up"}


def check_path(path: Path) -> None:
    """Raise UsageError unless a chart can be written there; to be known before minutes of measuring."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--chart {path}: expected a name that ends in .svg or .png")
    if not path.parent.is_dir():
        raise UsageError(f"--chart {path}: there is no folder {path.parent}")
    require("--chart", "report", "altair", "vl_convert")


def write(rows: Sequence[dict[str, Any]], copies: dict[str, dict[str, float]], caption: str, path: Path) -> None:
    """Draw one panel per norm and form; raises DataError where the file cannot be written."""
    import vl_convert

    spec = _spec(rows, copies, caption)
    if path.suffix == ".svg":
        files.write_text(path, vl_convert.vegalite_to_svg(spec))
    else:
        files.write_bytes(path, vl_convert.vegalite_to_png(spec, scale=2))


def _spec(rows: Sequence[dict[str, Any]], copies: dict[str, dict[str, float]], caption: str) -> dict[str, Any]:
    import altair as alt

    sides = [side for side in ("ours", *SIDES) if any(r[f"{side}_ms"] is not None for r in rows)]
    roof = _copy_speeds(rows)
    rules = [{"copy": f"copy in {name}", "speed": copy["bytes_per_s"] / 1e9} for name, copy in copies.items()]
    points = [point for r in rows for point in _points(r, sides)]
    speeds = [p["speed"] for p in (*points, *roof, *rules)]
    y = alt.Y("speed:Q", title="GB/s", scale=alt.Scale(type="log", domain=[min(speeds) / 1.3, max(speeds) * 1.3]))
    sizes = [p["size"] for p in points]
    x = alt.X("size:Q", title="MB of x", scale=alt.Scale(type="log", domain=[min(sizes) / 1.5, max(sizes) * 1.5]))

    def panel(norm: str, form: str) -> Any:
        here = [p for p in points if p["norm"] == norm and p["form"] == form]
        dots = alt.Chart(alt.Data(values=here)).mark_point(filled=True, size=45, opacity=0.85)
        dots = dots.encode(
            x=x,
            y=y,
            color=alt.Color("side:N", title=None, scale=alt.Scale(domain=sides, range=[_COLOURS[s] for s in sides])),
            shape=alt.Shape(
                "layout:N", title=None, scale=alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
            ),
        )
        line = alt.Chart(alt.Data(values=roof)).mark_line(color=theme.LIGHT["soft"], strokeWidth=1.5).encode(x=x, y=y)
        base = alt.Chart(alt.Data(values=rules)).encode(y=y)
        rule = base.mark_rule(color=theme.LIGHT["soft"], strokeDash=[3, 3])
        ends: tuple[Any, Any] = ("left", "right")  # the two may lie close together
        words = [
            alt.Chart(alt.Data(values=[at]))
            .mark_text(align=align, dy=-5, fontSize=9, color=theme.LIGHT["soft"])
            .encode(x=alt.value(_WIDTH * i), y=y, text="copy:N")
            for i, (at, align) in enumerate(zip(rules, ends, strict=True))
        ]
        layers = alt.layer(rule, *words, line, dots)
        return layers.properties(width=_WIDTH, height=150, title=f"{norm}: {form}")

    pairs = dict.fromkeys((r["norm"], r["form"]) for r in rows)
    norms = dict.fromkeys(norm for norm, _ in pairs)
    lines = [alt.hconcat(*(panel(n, form) for n, form in pairs if n == norm)) for norm in norms]
    title = alt.TitleParams(
        "Bytes that must move, a second; line: a copy of a tensor of that size",
        subtitle=caption.split("; "),
        anchor="start",
    )
    chart = alt.vconcat(*lines).properties(title=title)
    config = {**theme.config(), "legend": {"orient": "bottom", "labelFontSize": 12}, "background": "#ffffff"}
    spec: dict[str, Any] = theme.resolved({**chart.to_dict(), "config": config})
    return spec


def _points(row: dict[str, Any], sides: Sequence[str]) -> list[dict[str, Any]]:
    common = {name: row[name] for name in ("norm", "form", "layout")}
    return [
        {
            **common,
            "side": side,
            "size": row["tensor_bytes"] / 1e6,
            "speed": row["bytes_moved"] / row[f"{side}_ms"] / 1e6,
        }
        for side in sides
        if row[f"{side}_ms"] is not None
    ]


def _copy_speeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    speeds: dict[int, list[float]] = {}
    for row in rows:
        speeds.setdefault(row["tensor_bytes"], []).append(2 * row["tensor_bytes"] / row["copy_ms"] / 1e6)
    return [{"size": size / 1e6, "speed": statistics.median(found)} for size, found in sorted(speeds.items())]
