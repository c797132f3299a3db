"""The numerics certificate: the float32 error surface over mean and standard deviation, as chart and table."""

from __future__ import annotations

import math
from pathlib import Path

from normlab.check.report import Report
from normlab.errors import UsageError, files

SUFFIXES = (".html", ".svg", ".png", ".md", ".csv")


def write_certificate(report: Report, path: Path) -> None:
    """Write the surface of `numerics.surface` as a chart (.html, .svg, .png) or a table (.md, .csv).

    Raises UsageError for another suffix, or when the surface was not measured.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--certificate {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    points = next((f.measured.get("points") for f in report.findings if f.check == "numerics.surface"), None)
    if not points:
        raise UsageError(f"--certificate {path}: the error surface of {report.target} was not measured")
    rows = [tuple(float(v) for v in p) for p in points]
    if path.suffix == ".csv":
        lines = ["mean,std,rounding_units,error", *(f"{m:g},{s:g},{u:.6g},{e:.6g}" for m, s, u, e in rows)]
        files.write_text(path, "\n".join(lines) + "\n")
    elif path.suffix == ".md":
        files.write_text(path, table(report.target, rows))
    else:
        _chart(report.target, rows, path)


def table(target: str, rows: list[tuple[float, ...]]) -> str:
    """Errors in rounding units: a row per mean, a column per standard deviation."""
    means = sorted({r[0] for r in rows})
    stds = sorted({r[1] for r in rows})
    cell = {(r[0], r[1]): r[2] for r in rows}
    lines = [
        f"# {target}: float32 error in rounding units",
        "",
        "One unit is 2^-24 * (1 + |mean| / sqrt(var + eps)) * (1 + |y|); a sound algorithm stays below 64.",
        "",
        "| mean \\ std | " + " | ".join(f"{s:g}" for s in stds) + " |",
        "|---" * (len(stds) + 1) + "|",
    ]
    lines += [f"| {m:g} | " + " | ".join(f"{cell[m, s]:.2g}" for s in stds) + " |" for m in means]
    return "\n".join(lines) + "\n"


def _chart(target: str, rows: list[tuple[float, ...]], path: Path) -> None:
    import altair as alt

    values = [
        {
            "mean": f"{m:g}",
            "std": f"{s:g}",
            "log10 units": math.log10(u) if 0 < u < math.inf else (20.0 if u else -3.0),
            "units": f"{u:.3g}",
            "error": f"{e:.3g}",
        }
        for m, s, u, e in rows
    ]
    means = [f"{m:g}" for m in sorted({r[0] for r in rows}, reverse=True)]
    stds = [f"{s:g}" for s in sorted({r[1] for r in rows})]
    chart = (
        alt.Chart(alt.Data(values=values), title=f"{target}: float32 error in rounding units (64 and above: wrong)")
        .mark_rect()
        .encode(
            x=alt.X("std:O", sort=stds, title="standard deviation of the input"),
            y=alt.Y("mean:O", sort=means, title="mean of the input"),
            color=alt.Color(
                "log10 units:Q",
                scale=alt.Scale(domain=[-1, math.log10(64), 5], range=["#f7fbff", "#fdd49e", "#990000"], clamp=True),
                title="log10 units",
            ),
            tooltip=["mean:O", "std:O", "units:N", "error:N"],
        )
    )
    with files.whole(path) as part:
        chart.save(str(part), format=path.suffix[1:], inline=path.suffix == ".html")
