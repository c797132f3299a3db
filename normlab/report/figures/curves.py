"""Curves over epochs: means, intervals, seeds, and, beyond a dozen norms, the rest as one band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from normlab.report.figures.parts import (
    MOST_NORMS,
    MOST_POINTS,
    MOST_TABLE_ROWS,
    Figure,
    Table,
    by_norm,
    chart,
    crosshair,
    dashes,
    epoch_places,
    faded,
    finish,
    row,
    thinned,
    whole_axis,
)
from normlab.report.figures.series import Point, Series, series_of
from normlab.report.records import Cell
from normlab.report.theme import Style, Styles

# what stands in a drawing for the ends of its axes and for the places of epochs: no share, loss or epoch is negative
_SPAN, _ENDS, _PLACES = [-1.25, -2.5], [-3.25, -4.5], [-5.25]


def curves(
    cells: Mapping[str, Sequence[Cell]], column: str, title: str, key: str, styles: Styles, *, share: bool
) -> Figure:
    """One metric over epochs: a line per norm, its 95 % band, and the seeds as thin lines.

    `cells` maps a norm to its finished cells, the best first; norms beyond the first dozen become one grey band
    from their 10th to their 90th percentile. `share` says that the metric is a share of 1, shown in percent.
    """
    series = {norm: series_of(norm, of_norm, column, share=share) for norm, of_norm in cells.items()}
    return drawn(series, title, key, styles, share=share)


def drawn(of_norms: Mapping[str, Series], title: str, key: str, styles: Styles, *, share: bool) -> Figure:
    """The same of series that are there already."""
    everything = {norm: (series, found) for norm, series in of_norms.items() if (found := series.epochs)}
    series = {norm: s for norm, (s, _) in list(everything.items())[:MOST_NORMS]}
    rest = [s for s, _ in list(everything.values())[MOST_NORMS:]]
    epochs = thinned(sorted({epoch for _, found in everything.values() for epoch in found}), MOST_POINTS)
    points = {norm: {epoch: p for epoch in epochs if (p := s.point(epoch))} for norm, s in series.items()}
    bands = [point.band for of_norm in points.values() for point in of_norm.values()]
    seeds = [entry for of_norm in points.values() for point in of_norm.values() for entry in point.seeds]
    crowd = _middle_band(rest, epochs, 100.0 if share else 1.0)
    tips = [_tip(epoch, points, share) for epoch in epochs]

    # Bands of few seeds can be far wider than the lines and would flatten them; they are clipped instead.
    looks = tuple((norm, styles[norm].color, tuple(styles[norm].dash)) for norm in series)
    drawing = _drawing("%" if share else None, looks, len(epochs) <= 3, bool(crowd), bool(seeds))
    ends, places = epoch_places(epochs)
    spec = _filled(drawing, {tuple(_SPAN): _span(bands, seeds, share), tuple(_ENDS): ends, tuple(_PLACES): places})

    table = [
        [str(epoch), *[p.text if (p := of_norm.get(epoch)) else "–" for of_norm in points.values()]]
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
    unit: str | None, looks: tuple[tuple[str, str, tuple[int, ...]], ...], few: bool, crowd: bool, seeds: bool
) -> dict[str, Any]:
    """The specification of curves without their data, with `_SPAN`, `_ENDS` and `_PLACES` for what depends on it.

    `looks` has a norm's name, color and dash each; `few` says that there are so few epochs that a line alone would
    hide them.
    """
    import altair as alt

    norms = [norm for norm, _, _ in looks]
    styles = {norm: Style(color, list(dash)) for norm, color, dash in looks}
    scale_y = alt.Scale(domain=_SPAN, zero=False, nice=True)
    stroke = by_norm(alt.Stroke, norms, styles)
    color = by_norm(alt.Color, norms, styles)  # of a line and of the dots on it
    x = whole_axis(_ENDS, _PLACES)

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
    line = base.mark_line(strokeWidth=2, clip=True, point=_dots() if few else False)
    layers.append(line.encode(x=x, y=y("mean"), color=color, strokeDash=dashes(norms, styles), opacity=faded(1)))
    layers.append(crosshair(x))
    return finish(alt.layer(*layers), height=250)


def _filled(spec: Any, values: Mapping[tuple[float, ...], Sequence[float]]) -> Any:
    """A drawing with values in the places of what stands for them."""
    if isinstance(spec, dict):
        return {name: _filled(part, values) for name, part in spec.items()}
    if not isinstance(spec, list):
        return spec
    if spec in (_SPAN, _ENDS, _PLACES):
        return list(values[tuple(spec)])
    return [_filled(part, values) for part in spec]


def _middle_band(rest: Sequence[Series], epochs: Sequence[int], scale: float) -> list[dict[str, Any]]:
    """The middle 80 % of the means of the norms that are not drawn one by one."""
    rows = []
    for epoch in epochs if rest else ():
        means = [point.mean for series in rest if (point := series.point(epoch))]
        if means:
            low, high = np.percentile(means, [10, 90])
            rows.append(row(epoch=epoch, low=scale * float(low), high=scale * float(high)))
    return rows


def _tip(epoch: int, points: Mapping[str, Mapping[int, Point]], share: bool) -> dict[str, Any]:
    """What the pointer shows at an epoch: every norm's value, the best first."""
    here = [(norm, of_norm[epoch]) for norm, of_norm in points.items() if epoch in of_norm]
    here.sort(key=lambda pair: -pair[1].mean if share else pair[1].mean)
    return {"epoch": epoch, "tip": [["epoch", str(epoch)], *[[norm, point.text] for norm, point in here]]}


def _dots() -> Any:
    import altair as alt

    return alt.OverlayMarkDef(filled=True, size=30)


def _span(bands: Sequence[Mapping[str, Any]], seeds: Sequence[Mapping[str, Any]], share: bool) -> list[float]:
    """What the lines span, a little wider; percents end at 100."""
    values = [entry["mean"] for entry in bands] + [entry["value"] for entry in seeds]
    if not values:
        return [0.0, 1.0]
    margin = 0.06 * ((max(values) - min(values)) or 1.0)
    return [max(0.0, min(values) - margin), min(max(values) + margin, 100.0 if share else math.inf)]
