"""The few kinds of chart that the experiments draw, in the report's colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normlab.report import theme

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
            axis=alt.Axis(format="~g") if log_x else alt.Axis(format="d", tickMinStep=1),
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
    records: Sequence[dict[str, Any]], x: str, series: str, *, title: str, log: bool = False, percent: bool = False
) -> Any:
    """The mean of `x` over seeds as a dot for each `series`, with its 95 % interval."""
    import altair as alt

    order = list(dict.fromkeys(record[series] for record in records))
    rows = _summary([{**record, "one": 0} for record in records], "one", x, series)
    if log:
        rows = [{**row, "low": max(row["low"], row["mean"] / 1e3)} for row in rows]
    scale = alt.Scale(type="log" if log else "linear", zero=False)
    axis = alt.Axis(format=".0%") if percent else alt.Axis(format="~g")
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
    cells = base.mark_rect().encode(color=alt.Color(mean, scale=alt.Scale(scheme="blues"), legend=None))
    text = base.mark_text(fontSize=13).encode(text=alt.Text(mean, format=".1%"))
    return (cells + text).properties(width=320, height=160, title=title)


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
