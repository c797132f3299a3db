"""What every chart shares: its words and table, the norms' hues and dashes, and the reader's choice of norms.

Every chart has the parameter `chosen`, the norms that the reader picked (none: all are shown alike); the
page sets it in all charts at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.report.evidence import Estimate
from normlab.report.theme import Styles

MOST_NORMS = 12  # drawn one by one; beyond this, charts show the rest together
MOST_POINTS = 120  # epochs drawn per line; more do not fit into its pixels
MOST_TABLE_ROWS = 12
MOST_SEED_LINES = 8


@dataclass(frozen=True)
class Table:
    """The figures behind a chart: a header and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A chart (`spec`, Vega-Lite), what it shows in words, and its data."""

    key: str
    title: str
    caption: str
    spec: Mapping[str, Any]
    table: Table
    wide: bool = False


def percent(value: float, digits: int = 1) -> str:
    """A share of 1 in percent, or a dash for NaN."""
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else "–"


def plus_minus(score: Estimate, scale: float = 100, digits: int = 1) -> str:
    """`87.9 ± 0.4`, `98.9 [96.0, 100.0]` where the ends are not as far, or the mean alone without an interval."""
    if not score.values:
        return "–"
    text = f"{scale * score.mean:.{digits}f}"
    if score.has_interval and abs(score.low + score.high - 2 * score.mean) > 1e-6 * abs(score.mean):
        return f"{text} [{scale * score.low:.{digits}f}, {scale * score.high:.{digits}f}]"
    return f"{text} ± {score.margin(scale, digits)}" if score.has_interval else text


def by_norm(channel: Any, norms: Sequence[str], styles: Styles) -> Any:
    """A colour channel (alt.Fill, alt.Stroke) that gives every norm its own hue."""
    import altair as alt

    scale = alt.Scale(domain=list(norms), range=[styles[norm].color for norm in norms])
    return channel("norm:N", scale=scale, legend=None)


def dashes(norms: Sequence[str], styles: Styles) -> Any:
    """The dash of every norm, beside its hue."""
    import altair as alt

    scale = alt.Scale(domain=list(norms), range=[styles[norm].dash for norm in norms])
    return alt.StrokeDash("norm:N", scale=scale, legend=None)


def faded(opacity: float) -> Any:
    """This opacity for chosen norms, a shadow of it for the others."""
    import altair as alt

    test = "length(chosen) == 0 || indexof(chosen, datum.norm) >= 0"
    return alt.condition(test, alt.value(opacity), alt.value(opacity * 0.12))


def crosshair(x: Any, field: str = "epoch") -> Any:
    """A rule at the point nearest to the pointer; it shows the `tip` of that point, pairs of name and text.

    The chart needs a data set `tips`, whose rows have `field` and `tip`.
    """
    import altair as alt

    near = alt.selection_point(fields=[field], nearest=True, on="pointermove", clear="pointerout", empty=False)
    return (
        chart("tips")
        .mark_rule(stroke="var(--soft)", tooltip=alt.TooltipContent(content="data"))
        .encode(x=x, opacity=alt.condition(near, alt.value(0.5), alt.value(0.0)))
        .add_params(near)
    )


def chart(data: str) -> Any:
    """A chart of the data set of this name, which `finish` brings; Altair would copy the rows at every step."""
    import altair as alt

    return alt.Chart(alt.NamedData(data))


def finish(drawing: Any, height: int, **data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The specification of a drawing with its data, as wide as its place and aware of the chosen norms."""
    import altair as alt

    fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
    spec: dict[str, Any] = (
        drawing.properties(width="container", height=height, autosize=fitted)
        .add_params(alt.param(name="chosen", value=[]))
        .to_dict(validate=False)  # tests check every kind of chart against the schema; a report draws hundreds
    )
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return spec | {"datasets": {name: list(rows) for name, rows in data.items()}}


def plain_numbers() -> str:
    """A Vega expression for axis labels as people write numbers: 0.01, 30, 1,000, and 2e+6 beyond."""
    size = "abs(datum.value)"
    return (
        f"datum.value == 0 ? '0' : {size} >= 1e5 || {size} < 1e-3 ? format(datum.value, '.0e') : "
        "format(datum.value, ',.3~f')"
    )


def epoch_axis(epochs: Sequence[int]) -> Any:
    """Epochs from left to right, with whole numbers at round places."""
    return whole_axis(*epoch_places(epochs))


def epoch_places(epochs: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ends of an axis of epochs, and the round places on it."""
    low, high = min(epochs, default=1), max(epochs, default=1)
    step = next(size for size in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**9) if high - low <= 7 * size)
    return [low, high], [epoch for epoch in range(low, high + 1) if epoch % step == 0]


def whole_axis(ends: Sequence[float], places: Sequence[float]) -> Any:
    """An axis of epochs between these ends, with numbers at these places."""
    import altair as alt

    scale = alt.Scale(domain=list(ends), nice=False, zero=False)
    return alt.X("epoch:Q", title="epoch", scale=scale, axis=alt.Axis(values=list(places), format="d"))


def names_above(field: str, names: Sequence[str]) -> Any:
    """The columns of a matrix under their names: level where the longest has room, slanted where it has not."""
    import altair as alt

    room = 7 * min(14, max(map(len, names), default=1))  # pixels of the longest name, or of as much as is shown
    tight = f"containerSize()[0] < {150 + len(names) * room}"  # the scale's own width changes while this is laid out
    axis = alt.Axis(
        orient="top",
        domain=False,
        labelColor="var(--ink)",
        labelAngle=alt.expr(f"{tight} ? -45 : 0"),
        labelAlign=alt.expr(f"{tight} ? 'left' : 'center'"),
        labelLimit=alt.expr(f"{tight} ? 90 : bandwidth('x')"),
    )
    return alt.X(f"{field}:N", sort=list(names), title=None, axis=axis)


def number_size() -> Any:
    """Type for the number in a matrix's cell, smaller where cells are narrow."""
    import altair as alt

    return alt.expr("clamp(bandwidth('x') / 2.9, 6, 11)")


def thinned(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spaced, first and last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def row(**values: Any) -> dict[str, Any]:
    """A data row with floats short enough to store by the thousand."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in values.items()}
