"""The rules that decide between "holds", "does not hold" and "cannot tell", each stated with its finding.

Values are one per seed; intervals are 95 % intervals of the mean by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from normlab.reproduce.experiment import Finding

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
Format = Callable[[float], str]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def scientific(value: float) -> str:
    return f"{value:.2g}"


def times(value: float) -> str:
    return f"{value:,.0f} x" if abs(value) >= 1000 else f"{value:.3g} x"


def greater(
    claim: str,
    reported: str,
    more: Sequence[float],
    less: Sequence[float],
    *,
    margin: float = 0.0,
    names: tuple[str, str] = ("first", "second"),
) -> Finding:
    """Are these accuracies greater than those (or at most `margin` below them), seed by seed?"""
    differences = [a - b for a, b in zip(more, less, strict=True)]
    low, high = interval(differences)
    bound = "0" if not margin else points(-margin)
    rule = (
        f"holds if the interval of the difference, seed by seed, lies above {bound}; does not hold if it lies below; "
        "cannot tell if it contains it, or with one seed"
    )
    verdict = _by_bound(low, high, -margin)
    measured = f"{percent(_mean(more))} against {percent(_mean(less))}: {estimate(differences, points)}"
    return Finding(claim, reported, measured, verdict, rule, {names[0]: list(more), names[1]: list(less)})


def beyond(claim: str, reported: str, values: Sequence[float], bound: float, *, show: Format = scientific) -> Finding:
    """Are the values greater than `bound`?"""
    low, high = interval(values)
    rule = f"holds if the interval lies above {show(bound)}, does not hold if below, else cannot tell"
    return Finding(claim, reported, estimate(values, show), _by_bound(low, high, bound), rule, {"values": list(values)})


def within_order(claim: str, reported: float, values: Sequence[float]) -> Finding:
    """Are errors, whose logarithms are averaged, at most ten times the reported one?"""
    logs = [math.log10(max(value, 1e-300)) for value in values]
    low, high = interval(logs)
    bound = math.log10(reported) + 1
    middle, half = sum(logs) / len(logs), (high - low) / 2
    spread = "" if math.isnan(half) else f" (times or divided by {10**half:.2g})"
    return Finding(
        claim,
        scientific(reported),
        scientific(10**middle) + spread,
        _opposite(_by_bound(low, high, bound)),
        f"holds if the interval of the geometric mean lies below ten times the reported error, {10**bound:.2g}; "
        "does not hold if above; else cannot tell",
        {"values": list(values)},
    )


def ratio(claim: str, reported: str, values: Sequence[float], bound: float, *, below: bool = False) -> Finding:
    """Are these ratios, whose logarithms are averaged, above `bound`, or below it?"""
    logs = [math.log(value) for value in values]
    low, high = interval(logs)
    spread = "(one seed)" if math.isnan(low) else f"(times or divided by {math.exp((high - low) / 2):.3g})"
    verdict = _by_bound(low, high, math.log(bound))
    one, other = ("below", "above") if below else ("above", "below")
    return Finding(
        claim,
        reported,
        f"{times(math.exp(_mean(logs)))} {spread}",
        _opposite(verdict) if below else verdict,
        f"holds if the interval of the geometric mean lies {one} {times(bound)}, does not hold if {other}; "
        "cannot tell if it contains it, or with one seed",
        {"values": list(values)},
    )


def like_one_run(claim: str, reported: float, values: Sequence[float], *, original: bool, drawn: int = 0) -> Finding:
    """Could the reported figure, that of a single run, be one more of our runs?

    `drawn` is the number of images that an accuracy was measured on where the report used others of the same kind: both
    sets are then samples, and the prediction interval is widened by their sampling error, p (1 - p) / drawn each.
    """
    from scipy import stats

    rule = (
        "the reported figure is that of one run: holds if it lies in the 95 % prediction interval of a further run, "
        "does not hold if outside; cannot tell with fewer than three seeds or on other training images"
    )
    if drawn:
        rule += f"; the interval includes the sampling error of two sets of {drawn} validation images"
    measured, verdict = estimate(values, percent), UNKNOWN
    if not original:
        measured += " (other images)"
    elif len(values) >= 3:
        mean, std = _mean(values), _std(values)
        sampling = 2 * mean * (1 - mean) / drawn if drawn else 0.0
        spread = math.sqrt(std**2 * (1 + 1 / len(values)) + sampling)
        reach = float(stats.t.ppf(0.975, len(values) - 1)) * spread
        verdict = HOLDS if abs(reported - mean) <= reach else FAILS
        measured += f"; a further run: {percent(max(0, mean - reach))} to {percent(min(1, mean + reach))}"
    return Finding(claim, percent(reported), measured, verdict, rule, {"values": list(values)})


def exact(claim: str, reported: str, measured: str, true: bool, rule: str) -> Finding:
    """A finding that has no chance in it."""
    return Finding(claim, reported, measured, HOLDS if true else FAILS, rule)


def withheld(finding: Finding, why: str) -> Finding:
    """The same finding with no verdict."""
    return replace(finding, verdict=UNKNOWN, rule=f"{finding.rule}; cannot tell {why}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean; NaN with fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1)) * _std(values) / math.sqrt(len(values))
    return _mean(values) - half, _mean(values) + half


def estimate(values: Sequence[float], show: Format) -> str:
    """The mean and half its interval, in words."""
    low, high = interval(values)
    if math.isnan(low):
        return f"{show(_mean(values))} (one seed)"
    return f"{show(_mean(values))} ± {show((high - low) / 2).lstrip('+')}"


def _by_bound(low: float, high: float, bound: float) -> str:
    if low > bound:
        return HOLDS
    return FAILS if high < bound else UNKNOWN


def _opposite(verdict: str) -> str:
    return {HOLDS: FAILS, FAILS: HOLDS}.get(verdict, verdict)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    return math.sqrt(sum((value - _mean(values)) ** 2 for value in values) / (len(values) - 1))
