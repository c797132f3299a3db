"""Curves over epochs: means, intervals, seeds, and, beyond a dozen norms, the rest as one band."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from normlab.report.evidence import estimate
from normlab.report.figures.parts import (
    MOST_NORMS,
    MOST_POINTS,
    MOST_SEED_LINES,
    MOST_TABLE_ROWS,
    Figure,
    Table,
    by_norm,
    chart,
    crosshair,
    dashes,
    epoch_axis,
    faded,
    finish,
    plus_minus,
    row,
    thinned,
)
from normlab.report.records import Cell, number
from normlab.report.theme import Style, Styles

Series = dict[int, dict[int, float]]  # epoch -> seed -> value
_SPAN = [-1.25, -2.5]  # no ends of an axis of shares or losses


def curves(
    cells: Mapping[str, Sequence[Cell]], column: str, title: str, key: str, styles: Styles, *, share: bool
) -> Figure:
    """One metric over epochs: a line per norm, its 95 % band, and the seeds as thin lines.

    `cells` maps a norm to its finished cells, the best first; norms beyond the first dozen become one grey band
    from their 10th to their 90th percentile. `share` says that the metric is a share of 1, shown in percent.
    """
    scale, unit, digits = (100.0, "%", 1) if share else (1.0, None, 3)
    everything = {norm: s for norm, of_norm in cells.items() if (s := _by_epoch(of_norm, column))}
    series = dict(list(everything.items())[:MOST_NORMS])
    rest = list(everything.values())[MOST_NORMS:]
    epochs = thinned(sorted({epoch for s in everything.values() for epoch in s}), MOST_POINTS)
    bands, seeds = _rows(series, epochs, scale)
    tips = _tips(series, epochs, scale, digits, share)
    crowd = _middle_band(rest, epochs, scale)

    # Bands of few seeds can be far wider than the lines and would flatten them; they are clipped instead.
    looks = tuple((norm, styles[norm].color, tuple(styles[norm].dash)) for norm in series)
    drawing = _drawing(unit, looks, tuple(epochs), bool(crowd), bool(seeds))
    spec = _with_span(drawing, _span(bands, seeds, share))

    table = [
        [str(epoch), *[plus_minus(estimate(list(s.get(epoch, {}).values())), scale, digits) for s in series.values()]]
        for epoch in thinned(epochs, MOST_TABLE_ROWS)
    ]
    others = f"; {len(rest)} more as a grey band" if rest else ""
    return Figure(
        key=key,
        title=title,
        caption=f"{title} over {len(epochs)} epochs: {', '.join(series) or 'nothing finished'}{others}.",
        spec=spec | {"datasets": {"crowd": crowd, "bands": bands, "seeds": seeds, "tips": tips}},
        table=Table(["epoch", *series], table),
    )


@lru_cache(maxsize=64)  # Altair takes a tenth of a second; the live page wants four at every epoch
def _drawing(
    unit: str | None,
    looks: tuple[tuple[str, str, tuple[int, ...]], ...],
    epochs: tuple[int, ...],
    crowd: bool,
    seeds: bool,
) -> dict[str, Any]:
    """The specification of curves without their data, and with `_SPAN` in the place of what they span.

    `looks` has a norm's name, color and dash each.
    """
    import altair as alt

    norms = [norm for norm, _, _ in looks]
    styles = {norm: Style(color, list(dash)) for norm, color, dash in looks}
    scale_y = alt.Scale(domain=_SPAN, zero=False, nice=True)
    stroke = by_norm(alt.Stroke, norms, styles)
    color = by_norm(alt.Color, norms, styles)  # of a line and of the dots on it
    x = epoch_axis(epochs)

    def y(name: str) -> Any:
        return alt.Y(f"{name}:Q", title=unit, scale=scale_y, axis=alt.Axis(tickCount=5))

    layers = []
    if crowd:
        area = chart("crowd").mark_area(clip=True, fill="var(--soft)", opacity=0.18)
        layers.append(area.encode(x=x, y=y("low"), y2="high:Q"))
    base = chart("bands")
    fill = by_norm(alt.Fill, norms, styles)
    layers.append(base.mark_area(clip=True).encode(x=x, y=y("low"), y2="high:Q", fill=fill, opacity=faded(0.1)))
    if seeds:
        thin = chart("seeds").mark_line(strokeWidth=0.7, clip=True)
        layers.append(thin.encode(x=x, y=y("value"), stroke=stroke, detail="seed:N", opacity=faded(0.45)))
    line = base.mark_line(strokeWidth=2, clip=True, point=_dots(epochs))
    layers.append(line.encode(x=x, y=y("mean"), color=color, strokeDash=dashes(norms, styles), opacity=faded(1)))
    layers.append(crosshair(x))
    return finish(alt.layer(*layers), height=250)


def _with_span(spec: Any, span: Sequence[float]) -> Any:
    """A drawing with the ends of the vertical axis in their place."""
    if spec == _SPAN:
        return list(span)
    if isinstance(spec, dict):
        return {name: _with_span(part, span) for name, part in spec.items()}
    return [_with_span(part, span) for part in spec] if isinstance(spec, list) else spec


def _rows(series: Mapping[str, Series], epochs: Sequence[int], scale: float) -> tuple[list[Any], list[Any]]:
    bands, seeds = [], []
    for norm, values in series.items():
        for epoch in epochs:
            if epoch not in values:
                continue
            at = estimate(list(values[epoch].values()))
            # the interval of two seeds is six times as wide as their distance and would show nothing
            low, high = (at.low, at.high) if len(at.values) > 2 else (at.mean, at.mean)
            bands.append(row(norm=norm, epoch=epoch, mean=scale * at.mean, low=scale * low, high=scale * high))
            if len(at.values) > 1:
                several = list(values[epoch].items())[:MOST_SEED_LINES]
                seeds += [row(norm=norm, seed=seed, epoch=epoch, value=scale * v) for seed, v in several]
    return bands, seeds


def _middle_band(rest: Sequence[Series], epochs: Sequence[int], scale: float) -> list[dict[str, Any]]:
    """The middle 80 % of the means of the norms that are not drawn one by one."""
    rows = []
    for epoch in epochs if rest else ():
        means = [float(np.mean(list(s[epoch].values()))) for s in rest if epoch in s]
        if means:
            low, high = np.percentile(means, [10, 90])
            rows.append(row(epoch=epoch, low=scale * float(low), high=scale * float(high)))
    return rows


def _tips(
    series: Mapping[str, Series], epochs: Sequence[int], scale: float, digits: int, share: bool
) -> list[dict[str, Any]]:
    """What the pointer shows at each epoch: every norm's value, the best first."""
    tips = []
    for epoch in epochs:
        here = [(norm, estimate(list(s[epoch].values()))) for norm, s in series.items() if epoch in s]
        here.sort(key=lambda pair: -pair[1].mean if share else pair[1].mean)
        texts = [[norm, plus_minus(at, scale, digits)] for norm, at in here]
        tips.append({"epoch": epoch, "tip": [["epoch", str(epoch)], *texts]})
    return tips


def _by_epoch(cells: Iterable[Cell], column: str) -> Series:
    """Finite values only."""
    answer: Series = {}
    for cell in cells:
        for record in cell.epochs:
            value = number(record.get(column))
            if math.isfinite(value):
                answer.setdefault(int(number(record["epoch"])), {})[cell.seed] = value
    return answer


def _dots(epochs: Sequence[int]) -> Any:
    """Points where there are so few epochs that a line alone would hide them."""
    import altair as alt

    return alt.OverlayMarkDef(filled=True, size=30) if len(epochs) <= 3 else False


def _span(bands: Sequence[Mapping[str, Any]], seeds: Sequence[Mapping[str, Any]], share: bool) -> list[float]:
    """What the lines span, a little wider; percents end at 100."""
    values = [entry["mean"] for entry in bands] + [entry["value"] for entry in seeds]
    if not values:
        return [0.0, 1.0]
    margin = 0.06 * ((max(values) - min(values)) or 1.0)
    return [max(0.0, min(values) - margin), min(max(values) + margin, 100.0 if share else math.inf)]
