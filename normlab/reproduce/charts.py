"""The few kinds of chart that the experiments draw, in the report's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from normlab.report import theme
from normlab.report.figures.parts import epoch_axis

_COLOURS = [theme.LIGHT[f"c{i}"] for i in range(12)]
_DASHES = [[1, 0], [8, 3], [3, 2], [8, 3, 2, 3], [1, 2], [12, 3]]


def curves(
    records: Sequence[dict[str, Any]],
    x: str,
    y: str,
    series: str,
    *,
    title: str = "",
    log_x: bool = False,
    percent: bool = True,
) -> Any:
    """The mean of `y` over seeds against `x`, one line and one band (95 %) a series."""
    import altair as alt

    order = list(dict.fromkeys(record[series] for record in records))
    domain = alt.Scale(domain=order, range=_COLOURS[: len(order)])
    rows = _summary(records, x, y, series)
    if percent:
        rows = [{**row, "low": max(0, row["low"]), "high": min(1, row["high"])} for row in rows]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            f"{x}:Q",
            title=x.replace("_", " "),
            scale=alt.Scale(type="log" if log_x else "linear"),
            axis=alt.Axis(format="~g") if log_x else _whole_axis([row[x] for row in rows]),
        ),
    )
    axis = alt.Axis(format=".0%") if percent else alt.Axis()
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title=None, axis=axis),
        y2="high:Q",
        color=alt.Color(f"{series}:N", sort=order, scale=domain, legend=None),
    )
    line = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("mean:Q", title=None, axis=axis),
        color=alt.Color(f"{series}:N", sort=order, title=None, scale=domain),
        strokeDash=alt.StrokeDash(
            f"{series}:N", sort=order, title=None, scale=alt.Scale(domain=order, range=_dashes(order))
        ),
    )
    layers = (band + line).resolve_legend(color="independent", strokeDash="independent")
    return layers.properties(width=340, height=220, title=title or y.replace("_", " "))


def bars(
    records: Sequence[dict[str, Any]],
    x: str,
    series: str,
    *,
    title: str,
    log: bool = False,
    percent: bool = False,
    zero: bool = False,
) -> Any:
    """The mean of `x` over seeds as a dot for each `series`, with its 95 % interval; `zero` starts the axis at 0."""
    import altair as alt

    order = list(dict.fromkeys(record[series] for record in records))
    rows = _summary([{**record, "one": 0} for record in records], "one", x, series)
    if log:
        rows = [{**row, "low": max(row["low"], row["mean"] / 1e3)} for row in rows]
    scale = alt.Scale(type="log" if log else "linear", zero=zero)
    axis = alt.Axis(format=".0%" if percent else "~g", labelFlush=False, tickCount=5)
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y(f"{series}:N", sort=order, title=None))
    dots = base.mark_circle(size=70, color=_COLOURS[0]).encode(x=alt.X("mean:Q", title=x, scale=scale, axis=axis))
    spans = base.mark_rule(color=_COLOURS[0]).encode(x=alt.X("low:Q", scale=scale, title=x), x2="high:Q")
    return (spans + dots).properties(width=420, height=alt.Step(22), title=title)


def heat(records: Sequence[dict[str, Any]], x: str, y: str, value: str, *, title: str) -> Any:
    """The mean of `value` over seeds in a grid of `x` by `y`, with the figures in it."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(records))).encode(
        x=alt.X(f"{x}:O", title=x, axis=alt.Axis(labelAngle=0)), y=alt.Y(f"{y}:O", title=y)
    )
    mean = f"mean({value}):Q"
    cells = base.mark_rect().encode(color=alt.Color(mean, scale=alt.Scale(range=["#eef4fb", "#7db1de"]), legend=None))
    text = base.mark_text(fontSize=13).encode(text=alt.Text(mean, format=".1%"))
    return (cells + text).properties(width=320, height=160, title=title)


def evolution(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Percentiles over the epochs, a panel for each norm: median (line), middle 60 % (dark) and middle 98 % (pale).

    A panel's rows have "epoch" and five "percentiles". All panels have one scale, but for one that goes more than ten
    times as far as most: it has its own and says so.
    """
    import altair as alt

    styles = theme.styles(list(panels))
    reach = {norm: max(abs(value) for row in rows for value in row["percentiles"]) for norm, rows in panels.items()}
    usual = 10 * sorted(reach.values())[(len(reach) - 1) // 2]
    alike = [value for n, rows in panels.items() if reach[n] <= usual for row in rows for value in row["percentiles"]]
    drawn = []
    for norm, rows in panels.items():
        own = reach[norm] > usual
        scale = alt.Scale(zero=False) if own else alt.Scale(domain=[min(alike), max(alike)], nice=True)
        values = [
            {"epoch": row["epoch"], **{f"p{i}": value for i, value in enumerate(row["percentiles"])}} for row in rows
        ]
        base = alt.Chart(alt.Data(values=values)).encode(x=epoch_axis([row["epoch"] for row in rows]))
        color = styles[norm].color
        layers = [
            base.mark_area(color=color, opacity=opacity).encode(
                y=alt.Y(f"{low}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, format="~s")), y2=f"{high}:Q"
            )
            for low, high, opacity in (("p0", "p4", 0.16), ("p1", "p3", 0.3))
        ]
        layers.append(base.mark_line(color=color, strokeWidth=2).encode(y=alt.Y("p2:Q", title=None, scale=scale)))
        title = f"{norm} (its own scale)" if own else norm
        drawn.append(alt.layer(*layers).properties(width=180, height=150, title=title))
    return alt.concat(*drawn, columns=4)


def training(records: Sequence[dict[str, Any]], series: str, losses: Sequence[str] = ("loss",)) -> Any:
    """Accuracies on training and validation images and losses over the epochs, a line for each series."""
    import altair as alt

    drawn = [curves(records, "epoch", f"{part}_accuracy", series) for part in ("train", "val")]
    for loss in losses:
        finite = [record for record in records if math.isfinite(record[loss])]
        drawn.append(curves(finite, "epoch", loss, series, percent=False))
    return alt.concat(*drawn, columns=2)


def side_by_side(*charts: Any) -> Any:
    """Charts in a row."""
    import altair as alt

    return alt.hconcat(*charts)


def as_spec(chart: Any) -> dict[str, Any]:
    """The chart with the theme's type and colours, in its light scheme."""
    config = {
        **theme.config(),
        "legend": {"orient": "bottom", "labelFontSize": 12, "columns": 4, "symbolType": "stroke", "symbolSize": 500},
    }
    spec: dict[str, Any] = theme.resolved({**chart.to_dict(), "config": {**config, "background": "#ffffff"}})
    return spec


def _whole_axis(places: Sequence[float]) -> Any:
    """An axis with whole numbers at its ticks, each once, however few there are."""
    import altair as alt

    span = max(places, default=0) - min(places, default=0)
    few = list(range(math.ceil(min(places, default=0)), math.floor(max(places, default=0)) + 1)) if span <= 8 else None
    return alt.Axis(format="d", values=few) if few else alt.Axis(format="d", tickMinStep=1)


def _dashes(order: Sequence[Any]) -> list[list[int]]:
    return [_DASHES[i % len(_DASHES)] for i in range(len(order))]


def _summary(records: Sequence[dict[str, Any]], x: str, y: str, series: str) -> list[dict[str, Any]]:
    from normlab.reproduce.verdicts import interval

    groups: dict[tuple[Any, Any], list[float]] = {}
    for record in records:
        groups.setdefault((record[series], record[x]), []).append(float(record[y]))
    rows = []
    for (name, at), values in groups.items():
        mean = sum(values) / len(values)
        low, high = interval(values)
        rows.append(
            {
                series: name,
                x: at,
                "mean": mean,
                "low": mean if low != low else low,
                "high": mean if high != high else high,
            }
        )
    return rows
