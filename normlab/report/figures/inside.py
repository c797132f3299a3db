"""Inside the networks: how features drift, how gradients flow, which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normlab.report.evidence import estimate
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
    epoch_axis,
    faded,
    finish,
    names_above,
    number_size,
    percent,
    plain_numbers,
    row,
    thinned,
)
from normlab.report.records import Cell, number
from normlab.report.theme import Styles

NAMES = ("1st", "20th", "50th", "80th", "99th")
MOST_CLASSES = 20


def layers(cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """The layers whose distributions were recorded, in their order."""
    found: dict[str, None] = {}
    for of_norm in cells.values():
        for cell in of_norm:
            for epoch in cell.epochs:
                found.update(dict.fromkeys(epoch.get("features") or {}))
    return list(found)


def drift(cells: Mapping[str, Sequence[Cell]], layer: str, styles: Styles, key: str) -> list[Figure]:
    """How one layer's inputs are distributed over the epochs: a panel per norm, all on one scale.

    Of every norm the first seed is shown. The bands run from the 1st to the 99th and from the 20th to the 80th
    percentile, the line is the median. Where one norm's features outgrow the others' more than tenfold, the
    panels share the scale of the others and the outgrown panel says how far it goes.
    """
    series = {norm: _distributions(of_norm[0], layer) for norm, of_norm in cells.items() if of_norm}
    series = {norm: s for norm, s in list(series.items())[:MOST_NORMS] if s}
    if not series:
        return []
    reach = {n: max(abs(v) for r in s for v in r["percentiles"]) for n, s in series.items()}
    usual = float(np.median(list(reach.values())))
    alike = [s for n, s in series.items() if reach[n] <= 10 * usual]
    values = [value for s in alike for r in s for value in r["percentiles"]]
    common = [min(values, default=0.0), max(values, default=1.0)]
    return [
        _drift_panel(norm, s, layer, f"{key}-{place}", styles, common if reach[norm] <= 10 * usual else None)
        for place, (norm, s) in enumerate(series.items())
    ]


def gradients(cells: Mapping[str, Sequence[Cell]], styles: Styles) -> Figure | None:
    """The norm of every layer's gradient after the last epoch, from input to output, on a log scale."""
    import altair as alt

    rows, table = [], []
    order: dict[str, None] = {}
    for norm, of_norm in list(cells.items())[:MOST_NORMS]:
        recorded = [cell.epochs[-1].get("gradients") or {} for cell in of_norm if cell.epochs]
        for name in dict.fromkeys(name for record in recorded for name in record):
            found = [number(record.get(name)) for record in recorded]
            values = [value for value in found if math.isfinite(value) and value > 0]
            if values:
                order[name] = None
                rows.append(row(norm=norm, layer=name, value=float(np.exp(np.mean(np.log(values))))))
    if not rows:
        return None
    low, high = 0.8 * min(entry["value"] for entry in rows), 1.25 * max(entry["value"] for entry in rows)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in exponents for m in ((1, 2, 5) if high < 100 * low else (1,))]
    by_place = {(entry["norm"], entry["layer"]): entry["value"] for entry in rows}
    norms = list(dict.fromkeys(entry["norm"] for entry in rows))
    table = [[name, *[f"{by_place[n, name]:.2g}" if (n, name) in by_place else "–" for n in norms]] for name in order]
    drawing = (
        chart("rows")
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28, filled=True))
        .encode(
            x=alt.X("layer:N", sort=list(order), title="layer, input to output",
                    axis=alt.Axis(labelAngle=-40, labelLimit=140, labelOverlap=True)),
            y=alt.Y("value:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False), title="gradient norm",
                    axis=alt.Axis(values=[tick for tick in ticks if low <= tick <= high], labelExpr=plain_numbers())),
            color=by_norm(alt.Color, norms, styles),
            strokeDash=dashes(norms, styles),
            opacity=faded(1),
            tooltip=[alt.Tooltip("norm:N", title="norm"), alt.Tooltip("layer:N", title="layer"),
                     alt.Tooltip("value:Q", title="gradient norm", format=".3g")],
        )
    )  # fmt: skip
    return Figure(
        key="gradients",
        title="Gradient norm by layer, last epoch",
        caption=f"Norm of the weights' gradient per layer, averaged over seeds, for {', '.join(norms)}.",
        spec=finish(drawing, height=250, rows=rows),
        table=Table(["layer", *norms], table),
        wide=True,
    )


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], norm: str, key: str) -> Figure:
    """Which classes are taken for which: rows are true classes, columns predicted ones, numbers percent of the row.

    Beyond twenty classes, the twenty with the most mistakes are shown.
    """
    import altair as alt

    matrix = np.asarray(counts, dtype=np.float64)
    rates = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = list(range(len(classes)))
    if len(shown) > MOST_CLASSES:
        mistakes = (matrix.sum(axis=1) - np.diagonal(matrix)) + (matrix.sum(axis=0) - np.diagonal(matrix))
        shown = sorted(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist())
    rows = [
        row(i=i, j=j, rate=100 * float(rates[i, j]))
        | {"truth": classes[i], "called": classes[j], "count": int(matrix[i, j]), "right": i == j}
        for i in shown
        for j in shown
    ]
    names = [classes[i] for i in shown]
    # Places are numbers and names are labels: two classes may bear the same name.
    label = f"{_text_list(names)}[datum.value]"
    positions = {i: place for place, i in enumerate(shown)}
    for entry in rows:
        entry["i"], entry["j"] = positions[entry["i"]], positions[entry["j"]]
    base = chart("rows").encode(
        x=alt.X("j:O", title="predicted", axis=alt.Axis(labelExpr=label, labelAngle=-45, labelLimit=90, domain=False)),
        y=alt.Y("i:O", title="true", axis=alt.Axis(labelExpr=label, labelLimit=110)),
        tooltip=[
            alt.Tooltip("truth:N", title="true"),
            alt.Tooltip("called:N", title="predicted"),
            alt.Tooltip("rate:Q", title="% of the class", format=".1f"),
            alt.Tooltip("count:Q", title="images"),
        ],
    )
    depth = alt.Opacity("rate:Q", scale=alt.Scale(domain=[0, 30], range=[0.02, 0.75], clamp=True), legend=None)
    mark = base.mark_rect(stroke="var(--paper)", strokeWidth=1.5, cornerRadius=2)
    fill = alt.condition("datum.right", alt.value("var(--accent)"), alt.value("var(--c1)"))
    drawing = mark.encode(opacity=depth, fill=fill)
    if len(shown) <= 12:
        numbers = base.transform_filter("datum.rate >= 0.5").mark_text(fontSize=10, fill="var(--ink)")
        drawing = alt.layer(drawing, numbers.encode(text=alt.Text("rate:Q", format=".0f")))
    worst = sorted(
        ((float(rates[i, j]), classes[i], classes[j]) for i in shown for j in shown if i != j), reverse=True
    )[:3]
    named = "; ".join(f"{true} called {called} {percent(rate)} %" for rate, true, called in worst if rate > 0)
    return Figure(
        key=key,
        title=norm,
        caption=f"Confusion matrix of {norm}, percent of each true class. Most frequent mistakes: {named or 'none'}.",
        spec=finish(drawing, height=max(180, 26 * len(shown)), rows=rows),
        table=Table(
            ["true \\ predicted", *names],
            [[classes[i], *[str(int(matrix[i, j])) for j in shown]] for i in shown],
        ),
    )


def deletion_curves(records: Sequence[Mapping[str, Any]], styles: Styles) -> Figure:
    """How fast the explained class loses its probability as the pixels of a map are removed, against chance."""
    import altair as alt

    averaged: dict[str, Any] = {}
    for norm in dict.fromkeys(record["norm"] for record in records):
        of_norm = [record for record in records if record["norm"] == norm]
        averaged[norm] = {
            name: np.mean([record[name] for record in of_norm], axis=0) for name in ("by_map", "at_random")
        }
    shares = np.linspace(0, 100, len(next(iter(averaged.values()))["by_map"]))
    rows = [
        row(norm=norm, share=float(share), value=100 * float(value), kind=kind)
        for norm, curves in averaged.items()
        for kind in ("by_map", "at_random")
        for share, value in zip(shares, curves[kind], strict=True)
    ]
    tips = [
        {
            "share": float(share),
            "tip": [
                ["removed", f"{share:.0f} %"],
                *[
                    [n, f"{100 * c['by_map'][i]:.1f} % (random {100 * c['at_random'][i]:.1f})"]
                    for n, c in averaged.items()
                ],
            ],
        }
        for i, share in enumerate(shares)
    ]
    norms = list(averaged)
    x = alt.X("share:Q", title="pixels removed (%)")
    base = chart("rows").encode(
        x=x, y=alt.Y("value:Q", title="probability of the class (%)"), stroke=by_norm(alt.Stroke, norms, styles)
    )
    by_map = base.transform_filter("datum.kind == 'by_map'").mark_line(strokeWidth=2)
    chance = base.transform_filter("datum.kind == 'at_random'").mark_line(strokeWidth=1)
    drawing = alt.layer(
        chance.encode(opacity=faded(0.4)),
        by_map.encode(opacity=faded(1), strokeDash=dashes(norms, styles)),
        crosshair(x, "share"),
    )
    gain = {n: float(np.trapezoid(c["at_random"] - c["by_map"], shares / 100)) for n, c in averaged.items()}
    return Figure(
        key="deletion",
        title="Are the maps true to the network?",
        caption="Probability left after removing the most important pixels (thick) and random ones (thin). "
        + "; ".join(f"{norm}: area between {value:.2f}" for norm, value in gain.items()),
        spec=finish(drawing, height=250, rows=rows, tips=tips),
        table=Table(
            ["norm", "area between random and map", *[f"{share:.0f} %" for share in shares]],
            [[n, f"{gain[n]:.3f}", *[percent(v, 0) for v in c["by_map"]]] for n, c in averaged.items()],
        ),
    )


def agreement_matrix(records: Sequence[Mapping[str, Any]]) -> Figure:
    """How alike the maps of two norms are; the diagonal is two seeds of one norm, the yardstick."""
    import altair as alt

    norms = list(dict.fromkeys(name for record in records for name in (record["a"], record["b"])))[:MOST_NORMS]
    means = {(r["a"], r["b"]): number(r["mean"]) for r in records}
    means |= {(b, a): mean for (a, b), mean in list(means.items())}
    rows = [row(a=a, b=b, mean=means[a, b]) for a in norms for b in norms if math.isfinite(means.get((a, b), math.nan))]
    base = chart("rows").encode(
        x=names_above("a", norms),
        y=alt.Y("b:N", sort=norms, title=None, axis=alt.Axis(labelColor="var(--ink)", labelLimit=90)),
        tooltip=[alt.Tooltip("a:N", title="one"), alt.Tooltip("b:N", title="other"),
                 alt.Tooltip("mean:Q", title="rank correlation", format=".2f")],
    )  # fmt: skip
    depth = alt.Opacity("mean:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, 0.62], clamp=True), legend=None)
    mark = base.mark_rect(fill="var(--accent)", stroke="var(--paper)", strokeWidth=2, cornerRadius=3)
    text = base.mark_text(fontSize=number_size(), fill="var(--ink)").encode(text=alt.Text("mean:Q", format=".2f"))
    return Figure(
        key="agreement",
        title="Do two networks look at the same places?",
        caption="Mean rank correlation of Grad-CAM maps between norms; the diagonal compares seeds of one norm.",
        spec=finish(alt.layer(mark.encode(opacity=depth), text), height=max(100, 32 * len(norms) + 20), rows=rows),
        table=Table(
            ["", *norms],
            [[a, *[f"{means[a, b]:.2f}" if (a, b) in means else "–" for b in norms]] for a in norms],
        ),
    )


def _drift_panel(
    norm: str, series: Sequence[Mapping[str, Any]], layer: str, key: str, styles: Styles, common: Sequence[float] | None
) -> Figure:
    import altair as alt

    color = styles[norm].color
    kept = [series[i] for i in thinned(range(len(series)), MOST_POINTS)]
    rows = [row(norm=norm, epoch=r["epoch"], **{f"p{i}": v for i, v in enumerate(r["percentiles"])}) for r in kept]
    tips = [
        {
            "epoch": r["epoch"],
            "tip": [
                ["epoch", str(r["epoch"])],
                *[[f"{name} percentile", f"{v:.3g}"] for name, v in zip(NAMES, r["percentiles"], strict=True)],
                ["mean", f"{r['mean']:.3g}"],
                ["standard deviation", f"{r['std']:.3g}"],
                ["dead units", f"{100 * r['dead']:.0f} %"],
            ],
        }
        for r in kept
    ]
    scale = alt.Scale(domain=list(common), nice=True, zero=False) if common else alt.Scale(zero=False)
    x = epoch_axis([r["epoch"] for r in kept])

    def y(name: str) -> Any:
        return alt.Y(f"{name}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, labelExpr=plain_numbers()))

    base = chart("rows")
    drawing = alt.layer(
        base.mark_area(opacity=0.16, fill=color, clip=True).encode(x=x, y=y("p0"), y2="p4:Q"),
        base.mark_area(opacity=0.30, fill=color, clip=True).encode(x=x, y=y("p1"), y2="p3:Q"),
        base.mark_line(strokeWidth=2, stroke=color, clip=True).encode(x=x, y=y("p2")),
        crosshair(x),
    )
    last = kept[-1]
    own = "" if common else " (its own scale)"
    return Figure(
        key=key,
        title=norm + own,
        caption=f"Distribution of {layer} with {norm} over {len(series)} epochs; last: median "
        f"{last['percentiles'][2]:.3g}, 1st to 99th percentile {last['percentiles'][0]:.3g} to "
        f"{last['percentiles'][4]:.3g}, {100 * last['dead']:.0f} % dead units.",
        spec=finish(drawing, height=170, rows=rows, tips=tips),
        table=Table(
            ["epoch", *NAMES, "mean", "std", "dead (%)"],
            [
                [str(r["epoch"]), *[f"{v:.3g}" for v in r["percentiles"]], f"{r['mean']:.3g}", f"{r['std']:.3g}",
                 percent(r["dead"], 0)]
                for r in (kept[i] for i in thinned(range(len(kept)), MOST_TABLE_ROWS))
            ],
        ),
    )  # fmt: skip


def _distributions(cell: Cell, layer: str) -> list[dict[str, Any]]:
    """The records of one layer in which every figure is finite."""
    found = []
    for epoch in cell.epochs:
        record = (epoch.get("features") or {}).get(layer)
        if record:
            percentiles = [number(value) for value in record["percentiles"]]
            rest = {name: number(record.get(name)) for name in ("mean", "std", "dead")}
            if len(percentiles) == len(NAMES) and all(map(math.isfinite, [*percentiles, *rest.values()])):
                found.append({"epoch": int(number(epoch["epoch"])), "percentiles": percentiles, **rest})
    return found


def _text_list(names: Sequence[str]) -> str:
    """Names as a list in Vega's expression language, which takes JSON's strings."""
    import json

    return json.dumps(list(names))


def mean_and_seeds(values: Sequence[float]) -> str:
    """For tables: `0.412 ± 0.020` over seeds."""
    at = estimate(list(values))
    return f"{at.mean:.3f} ± {at.half_width:.3f}" if at.has_interval else f"{at.mean:.3f}"
