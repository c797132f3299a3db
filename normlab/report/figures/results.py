"""The outcome: a ranking with every seed, the settings as a heat map, and what a norm costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normlab.report.evidence import Estimate, estimate
from normlab.report.figures.parts import (
    MOST_NORMS,
    Figure,
    Table,
    by_norm,
    chart,
    faded,
    finish,
    names_above,
    number_size,
    percent,
    plus_minus,
    row,
)
from normlab.report.records import Cell, Study, number
from normlab.report.theme import Styles

MOST_SETTINGS = 24


def ranking(
    cells: Mapping[str, Sequence[Cell]],
    title: str,
    key: str,
    styles: Styles,
    column: str = "test_accuracy",
    *,
    wide: bool = True,
    domain: Sequence[float] | None = None,
    scores: Mapping[str, Estimate] | None = None,
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """Norms by their mean, with the 95 % interval as a bar and every seed as a dot; the dozen best are drawn.

    `scores` are the estimates, if they are not simply those of the cells. `floors` are drawn as lines where they lie
    within what the norms span.
    """
    import altair as alt

    scores = ranked(cells, column) if scores is None else _ordered(scores)
    drawn = dict(list(scores.items())[:MOST_NORMS])
    means: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for norm, score in drawn.items():
        low, high = (score.low, score.high) if score.has_interval else (score.mean, score.mean)
        means.append(
            {"text": plus_minus(score) + " %", "seeds": len(score.values)}
            | row(norm=norm, mean=100 * score.mean, low=100 * low, high=100 * high)
        )
        dots += [{"norm": norm, "value": round(100 * value, 4)} for value in score.values]
    domain = domain or reach(scores)
    lines = [row(floor=100 * v, text=f"{n} {percent(v)} %") for n, v in (floors or {}).items() if domain[0] <= 100 * v]
    what = column.replace("_", " ")

    def x(name: str) -> Any:
        # Every layer names the domain: a layer that does not would stretch the shared axis to zero.
        scale, axis = alt.Scale(domain=list(domain), nice=False, zero=False), alt.Axis(grid=True, tickCount=5)
        return alt.X(f"{name}:Q", title=f"{what} (%)", scale=scale, axis=axis)

    y = norm_axis(drawn)
    fill = by_norm(alt.Fill, list(drawn), styles)
    tooltip = [
        alt.Tooltip("norm:N", title="norm"),
        alt.Tooltip("text:N", title="mean ± 95 %"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    of_seed = [alt.Tooltip("norm:N", title="norm"), alt.Tooltip("value:Q", title="one seed (%)", format=".2f")]
    base, points = chart("means"), chart("dots")
    bars = base.mark_rule(strokeWidth=6, strokeCap="round", clip=True)
    stroke = by_norm(alt.Stroke, list(drawn), styles)
    layers = [
        bars.encode(y=y, x=x("low"), x2="high:Q", stroke=stroke, opacity=faded(0.25), tooltip=tooltip),
        base.mark_tick(thickness=3, size=20).encode(y=y, x=x("mean"), fill=fill, opacity=faded(1), tooltip=tooltip),
        points.mark_circle(size=42).encode(y=y, x=x("value"), fill=fill, opacity=faded(0.75), tooltip=of_seed),
    ]
    if lines:
        of_floor = [alt.Tooltip("text:N", title="without a network")]
        rule = chart("lines").mark_rule(stroke="var(--soft)", strokeDash=[4, 3], strokeWidth=1.5, clip=True)
        layers.insert(0, rule.encode(x=x("floor"), tooltip=of_floor))
    summary = "; ".join(f"{norm} {plus_minus(score)} %" for norm, score in drawn.items())
    if floors:
        summary += "; without a network: " + ", ".join(f"{n} {percent(v)} %" for n, v in floors.items())
    return Figure(
        key=key,
        title=title,
        caption=f"Norms by mean {what}, {title}; dots are seeds, bars 95 % intervals. {summary}.",
        spec=finish(
            alt.layer(*layers),
            height=max(110, 30 * len(drawn)),
            means=means,
            dots=dots,
            **({"lines": lines} if lines else {}),
        ),
        table=Table(
            ["norm", "mean ± 95 %", "seeds", "each seed"],
            [
                [norm, plus_minus(s), str(len(s.values)), ", ".join(percent(v, 2) for v in s.values)]
                for norm, s in scores.items()
            ],
        ),
        wide=wide,
    )


def reach(scores: Mapping[str, Estimate]) -> list[float]:
    """The range of the intervals and seeds of the dozen best, in percent, a little wider."""
    drawn = list(scores.values())[:MOST_NORMS]
    values = [100 * v for s in drawn for v in (*s.values, *((s.low, s.high) if s.has_interval else ()))]
    span = (max(values) - min(values)) or 1.0
    return [max(0.0, min(values) - 0.04 * span), min(100.0, max(values) + 0.04 * span)]


def ranked(cells: Mapping[str, Sequence[Cell]], column: str) -> dict[str, Estimate]:
    """Each norm's estimate, best first; norms without a finished cell are left out."""
    scores = {norm: estimate([cell.value(column) for cell in of_norm]) for norm, of_norm in cells.items()}
    return _ordered(scores)


def _ordered(scores: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return dict(sorted(((n, s) for n, s in scores.items() if s.values), key=lambda item: -item[1].mean))


def heatmap(study: Study, norms: Sequence[str]) -> Figure:
    """Validation accuracy of every norm at every setting; validation, because it is for choosing."""
    import altair as alt

    scores = {
        (norm, setting): estimate([cell.last("val_accuracy") for cell in study.done(norm, setting)])
        for norm in norms[:MOST_NORMS]
        for setting in study.settings
    }
    known = {place: score for place, score in scores.items() if score.values}
    best = {s: max((known[p].mean for p in known if p[1] == s), default=-1.0) for s in study.settings}
    shown = sorted(study.settings, key=lambda s: -best[s])[:MOST_SETTINGS] if len(best) > MOST_SETTINGS else list(best)
    rows = [
        row(norm=norm, setting=study.label(setting), mean=100 * score.mean)
        | {"text": plus_minus(score), "seeds": len(score.values)}
        for (norm, setting), score in known.items()
        if setting in shown
    ]
    values = [entry["mean"] for entry in rows]
    ends = [min(values), max(values)] if values else [0.0, 1.0]
    base = chart("rows").encode(
        x=names_above("norm", norms[:MOST_NORMS]),
        y=alt.Y("setting:N", sort=[study.label(s) for s in shown], title=None,
                axis=alt.Axis(labelColor="var(--ink)", labelLimit=alt.expr("containerSize()[0] < 500 ? 110 : 220"))),
        tooltip=[
            alt.Tooltip("norm:N", title="norm"),
            alt.Tooltip("setting:N", title="setting"),
            alt.Tooltip("text:N", title="validation accuracy (%)"),
            alt.Tooltip("seeds:Q", title="seeds"),
        ],
    )  # fmt: skip
    depth = alt.Opacity("mean:Q", scale=alt.Scale(domain=ends, range=[0.04, 0.62]), legend=None)
    cells = base.mark_rect(fill="var(--accent)", stroke="var(--paper)", strokeWidth=2, cornerRadius=3)
    numbers = base.mark_text(fontSize=number_size(), fill="var(--ink)").encode(text=alt.Text("mean:Q", format=".1f"))
    left_out = len(study.settings) - len(shown)
    return Figure(
        key="heatmap",
        title="Validation accuracy by setting (%)"
        + (f", the best {len(shown)} of {len(study.settings)}" if left_out else ""),
        caption="Mean validation accuracy of each norm at each setting; stronger colour is better.",
        spec=finish(alt.layer(cells.encode(opacity=depth), numbers), height=max(80, 34 * len(shown) + 20), rows=rows),
        table=Table(
            ["setting", *norms[:MOST_NORMS]],
            [[study.label(s), *[plus_minus(scores[n, s]) for n in norms[:MOST_NORMS]]] for s in shown],
        ),
        wide=True,
    )


def cost(cells: Mapping[str, Sequence[Cell]], styles: Styles) -> Figure:
    """Images per second of every norm in training, cell by cell, with memory and parameters in the table."""
    import altair as alt

    speeds = {norm: [speed(cell) for cell in of_norm] for norm, of_norm in cells.items() if of_norm}
    means = {norm: estimate(values) for norm, values in speeds.items()}
    means = dict(sorted(((n, s) for n, s in means.items() if s.values), key=lambda item: -item[1].mean)[:MOST_NORMS])
    bars = [row(norm=norm, value=score.mean) for norm, score in means.items()]
    dots = [row(norm=norm, value=value) for norm, score in means.items() for value in score.values]
    tooltip = [alt.Tooltip("norm:N", title="norm"), alt.Tooltip("value:Q", title="images/s", format=",.0f")]
    x = alt.X("value:Q", title="images per second in training", axis=alt.Axis(grid=True, tickCount=5),
              scale=alt.Scale(zero=True))  # fmt: skip
    y = norm_axis(means)
    fill = by_norm(alt.Fill, list(means), styles)
    layers = [
        chart("bars")
        .mark_bar(height=10, cornerRadiusEnd=3)
        .encode(x=x, y=y, fill=fill, opacity=faded(0.4), tooltip=tooltip),
        chart("dots").mark_circle(size=26).encode(x=x, y=y, fill=fill, opacity=faded(0.9), tooltip=tooltip),
    ]
    return Figure(
        key="cost",
        title="Training speed",
        caption="Images per second while training, by norm; dots are single trainings.",
        spec=finish(alt.layer(*layers), height=max(110, 30 * len(means)), bars=bars, dots=dots),
        table=Table(
            ["norm", "images/s", "each training"],
            [[n, plus_minus(s, 1, 0), ", ".join(f"{v:,.0f}" for v in s.values)] for n, s in means.items()],
        ),
        wide=True,
    )


def cost_table(cells: Mapping[str, Sequence[Cell]]) -> Table:
    """Speed, time of an epoch, peak memory and parameters of each norm; a dash for what was not recorded."""
    rows = []
    for norm, of_norm in cells.items():
        fast = estimate([speed(cell) for cell in of_norm])
        seconds = estimate([_median(cell, "seconds") for cell in of_norm])
        memory = [number(cell.extra.get("peak_memory_bytes")) for cell in of_norm]
        parameters = [number(cell.extra.get("parameters")) for cell in of_norm]
        rows.append(
            [
                norm,
                plus_minus(fast, 1, 0),
                plus_minus(seconds, 1, 1),
                _largest(memory, 1 / 2**20, "MiB"),
                _largest(parameters, 1, ""),
            ]
        )
    return Table(["norm", "images/s", "seconds per epoch", "peak memory", "parameters"], rows)


def norm_axis(norms: Mapping[str, Any]) -> Any:
    """Norms from top to bottom, in their order."""
    import altair as alt

    axis = alt.Axis(labelColor="var(--ink)", labelFontSize=13, labelLimit=150)
    return alt.Y("norm:N", sort=list(norms), title=None, axis=axis)


def speed(cell: Cell) -> float:
    """Images per second in training, the median over epochs."""
    return _median(cell, "images_per_second")


def _median(cell: Cell, column: str) -> float:
    """The median over epochs: the first epochs pay for compiling, and some for other programs."""
    values = [number(epoch.get(column)) for epoch in cell.epochs]
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def _largest(values: Sequence[float], scale: float, unit: str) -> str:
    finite = [value for value in values if np.isfinite(value)]
    return f"{max(finite) * scale:,.0f} {unit}".strip() if finite else "–"
