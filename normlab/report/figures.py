"""The charts of the report: Vega-Lite specifications by Altair, each with its words and its data table.

Every chart knows the parameter `chosen`, the norms that the reader picked (none: all are shown alike); the
page sets it in all charts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normlab.report import theme
from normlab.report.evidence import Estimate, estimate
from normlab.report.records import Cell, Study, number

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
    classes: Sequence[str] = field(default=())


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else "–"


def plus_minus(score: Estimate, scale: float = 100, digits: int = 1) -> str:
    """`87.9 ± 0.4`, or the mean alone where there is no interval."""
    if not score.values:
        return "–"
    text = f"{scale * score.mean:.{digits}f}"
    return f"{text} ± {scale * score.half_width:.{digits}f}" if score.has_interval else text


def curves(study: Study, setting: tuple[str, ...], column: str, title: str, *, share: bool) -> Figure:
    """One metric over epochs at one setting: a line per norm, its 95 % band, and the seeds as thin lines.

    `share` says that the metric is a share of 1 and is shown in percent.
    """
    import altair as alt

    scale, unit = (100, "%") if share else (1, None)
    bands, seeds, tips = [], [], []
    series = {norm: _by_epoch(study.done(norm, setting), column) for norm in study.norms}
    series = {norm: values for norm, values in series.items() if values}
    epochs = thinned(sorted({epoch for values in series.values() for epoch in values}), MOST_POINTS)
    for norm, values in series.items():
        for epoch in epochs:
            if epoch in values and (at := estimate(list(values[epoch].values()))).values:
                low, high = (at.low, at.high) if at.has_interval else (at.mean, at.mean)
                bands.append(_row(norm=norm, epoch=epoch, mean=scale * at.mean, low=scale * low, high=scale * high))
                several = list(values[epoch].items())[:MOST_SEED_LINES] if len(at.values) > 1 else []
                seeds += [_row(norm=norm, seed=seed, epoch=epoch, value=scale * v) for seed, v in several]
    digits = 1 if share else 3
    for epoch in epochs:
        here = [(norm, estimate(list(values[epoch].values()))) for norm, values in series.items() if epoch in values]
        here.sort(key=lambda pair: -pair[1].mean if share else pair[1].mean)
        tips.append(
            {
                "epoch": epoch,
                "tip": [["epoch", str(epoch)], *[[n, plus_minus(e, scale, digits)] for n, e in here]],
            }
        )

    # Bands of few seeds can be far wider than the lines and would flatten them; they are clipped instead.
    scale_y = alt.Scale(domain=_span(bands, seeds), zero=False, nice=True)
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, tickCount=6, format="d"))
    y = alt.Y("mean:Q", title=unit, scale=scale_y, axis=alt.Axis(tickCount=5))
    stroke, dash = by_norm(alt.Stroke, list(series)), _dashes(list(series))
    base = alt.Chart(alt.InlineData(bands))
    layers = [
        base.mark_area(clip=True).encode(
            x=x,
            y=alt.Y("low:Q", scale=scale_y, title=unit),
            y2="high:Q",
            fill=by_norm(alt.Fill, list(series)),
            opacity=_faded(0.1),
        ),
        base.mark_line(strokeWidth=2, clip=True).encode(x=x, y=y, stroke=stroke, strokeDash=dash, opacity=_faded(1)),
    ]
    if seeds:
        thin = alt.Chart(alt.InlineData(seeds)).mark_line(strokeWidth=0.7, clip=True)
        layers.insert(
            1,
            thin.encode(
                x=x,
                y=alt.Y("value:Q", scale=scale_y, title=unit),
                stroke=stroke,
                detail="seed:N",
                opacity=_faded(0.45),
            ),
        )
    layers += _crosshair(tips, x)
    sampled = thinned(epochs, MOST_TABLE_ROWS)
    rows = [
        [
            str(e),
            *[plus_minus(estimate(list(v[e].values())), scale, digits) if e in v else "–" for v in series.values()],
        ]
        for e in sampled
    ]
    return Figure(
        key=f"curve-{column}-{study.settings.index(setting)}",
        title=title,
        caption=f"{title} over {len(epochs)} epochs for {', '.join(series) or 'no finished cell'}.",
        spec=finish(alt.layer(*layers), height=250),
        table=Table(["epoch", *series], rows),
    )


def ranking(study: Study, setting: tuple[str, ...], column: str = "test_accuracy") -> Figure:
    """Norms by their mean, with the 95 % interval as a bar and every seed as a dot."""
    import altair as alt

    scores = ranked(study, setting, column)
    means: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for norm, score in scores.items():
        low, high = (score.low, score.high) if score.has_interval else (score.mean, score.mean)
        means.append(
            {"text": plus_minus(score) + " %", "seeds": len(score.values)}
            | _row(norm=norm, mean=100 * score.mean, low=100 * low, high=100 * high)
        )
        dots += [{"norm": norm, "value": round(100 * value, 4)} for value in score.values]
    stroke, fill = by_norm(alt.Stroke, list(scores)), by_norm(alt.Fill, list(scores))
    reach = [row[key] for row in means for key in ("low", "high")] + [dot["value"] for dot in dots]
    span = (max(reach) - min(reach)) or 1.0
    domain = [max(0.0, min(reach) - 0.04 * span), min(100.0, max(reach) + 0.04 * span)]
    y = alt.Y("norm:N", sort=list(scores), title=None, axis=alt.Axis(labelColor="var(--ink)", labelFontSize=13))

    def x(name: str) -> Any:
        # Every layer names the domain: a layer that does not would stretch the shared axis to zero.
        scale, axis = alt.Scale(domain=domain, nice=False, zero=False), alt.Axis(grid=True, tickCount=6)
        return alt.X(name, title=f"{column.replace('_', ' ')} (%)", scale=scale, axis=axis)

    tooltip = [
        alt.Tooltip("norm:N", title="norm"),
        alt.Tooltip("text:N", title="mean ± 95 %"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    base = alt.Chart(alt.InlineData(means))
    layers = [
        base.mark_rule(strokeWidth=6, strokeCap="round").encode(
            y=y, x=x("low:Q"), x2="high:Q", stroke=stroke, opacity=_faded(0.25), tooltip=tooltip
        ),
        base.mark_tick(thickness=3, size=20).encode(
            y=y, x=x("mean:Q"), fill=fill, opacity=_faded(1.0), tooltip=tooltip
        ),
        alt.Chart(alt.InlineData(dots))
        .mark_circle(size=42)
        .encode(
            y=y,
            x=x("value:Q"),
            fill=fill,
            opacity=_faded(0.75),
            tooltip=[
                alt.Tooltip("norm:N", title="norm"),
                alt.Tooltip("value:Q", title="one seed (%)", format=".2f"),
            ],
        ),
    ]
    label = study.label(setting) if len(study.settings) > 1 else "every norm"
    return Figure(
        key=f"ranking-{study.settings.index(setting)}",
        title=label if len(study.settings) > 1 else column.replace("_", " ").capitalize(),
        caption=f"Norms by mean {column.replace('_', ' ')} ({label}); dots are seeds, bars 95 % intervals. "
        + "; ".join(f"{norm} {plus_minus(score)} %" for norm, score in scores.items()),
        spec=finish(alt.layer(*layers), height=max(120, 30 * len(scores))),
        table=Table(
            ["norm", "mean ± 95 %", "seeds", "each seed"],
            [
                [n, plus_minus(s), str(len(s.values)), ", ".join(percent(v, 2) for v in s.values)]
                for n, s in scores.items()
            ],
        ),
        wide=len(study.settings) == 1,
    )


def ranked(study: Study, setting: tuple[str, ...], column: str) -> dict[str, Estimate]:
    """Each norm's estimate at one setting, best first; norms without a finished cell are left out."""
    scores = {norm: estimate([cell.value(column) for cell in study.done(norm, setting)]) for norm in study.norms}
    return dict(sorted(((n, s) for n, s in scores.items() if s.values), key=lambda item: -item[1].mean))


def by_norm(channel: Any, norms: Sequence[str]) -> Any:
    """A colour channel (alt.Fill, alt.Stroke) that gives every norm its own hue."""
    import altair as alt

    drawn = theme.styles(norms)
    scale = alt.Scale(domain=list(norms), range=[drawn[norm].color for norm in norms])
    return channel("norm:N", scale=scale, legend=None)


def _dashes(norms: Sequence[str]) -> Any:
    import altair as alt

    drawn = theme.styles(norms)
    scale = alt.Scale(domain=list(norms), range=[drawn[norm].dash for norm in norms])
    return alt.StrokeDash("norm:N", scale=scale, legend=None)


def finish(chart: Any, height: int) -> dict[str, Any]:
    """The chart's specification, as wide as its place on the page and aware of the chosen norms."""
    import altair as alt

    spec: dict[str, Any] = (
        chart.properties(
            width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
        )
        .add_params(alt.param(name="chosen", value=[]))
        .to_dict()
    )
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return spec


def thinned(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spaced, first and last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _by_epoch(cells: Iterable[Cell], column: str) -> dict[int, dict[int, float]]:
    """epoch -> seed -> value, finite values only."""
    answer: dict[int, dict[int, float]] = {}
    for cell in cells:
        for record in cell.epochs:
            value = number(record.get(column))
            if math.isfinite(value):
                answer.setdefault(int(number(record["epoch"])), {})[cell.seed] = value
    return answer


def _span(bands: Sequence[Mapping[str, Any]], seeds: Sequence[Mapping[str, Any]]) -> list[float]:
    """What the lines span, a little wider; a band of two or three seeds may reach beyond it."""
    values = [row["mean"] for row in bands] + [row["value"] for row in seeds]
    if not values:
        return [0.0, 1.0]
    margin = 0.06 * ((max(values) - min(values)) or 1.0)
    return [max(0.0, min(values) - margin), max(values) + margin]


def _crosshair(tips: Sequence[Mapping[str, Any]], x: Any) -> list[Any]:
    """A rule at the epoch nearest to the pointer that shows every norm's value there."""
    import altair as alt

    near = alt.selection_point(fields=["epoch"], nearest=True, on="pointermove", clear="pointerout", empty=False)
    shown = alt.condition(near, alt.value(0.5), alt.value(0.0))
    data = alt.Chart(alt.InlineData(tips))
    return [
        data.mark_rule(stroke="var(--soft)", tooltip=alt.TooltipContent(content="data"))
        .encode(x=x, opacity=shown)
        .add_params(near)
    ]


def _faded(opacity: float) -> Any:
    """This opacity for chosen norms, a shadow of it for the others."""
    import altair as alt

    test = "length(chosen) == 0 || indexof(chosen, datum.norm) >= 0"
    return alt.condition(test, alt.value(opacity), alt.value(opacity * 0.12))


def _row(**values: Any) -> dict[str, Any]:
    """A data row with floats short enough to store by the thousand."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in values.items()}
