"""The rules that decide whether a finding holds, each stated with its finding.

Values are one per seed. Their intervals are Student's 95 % intervals of the mean, with a floor under the spread:
two seeds that happen to agree are not certain, least of all of accuracies, which are shares of a number of images.
A verdict says at which scale it was reached: what was reported of a hundred epochs, three neither confirm nor refute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import stdev
from typing import NamedTuple

from normlab.reproduce.finding import Finding
from normlab.study import statistics
from normlab.study.verdict import MATTERS
from normlab.study.verdict import percent as percent  # for the experiments, too

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
HERE, NOT_HERE, EQUIVALENT = "holds at this scale", "does not hold at this scale", "equivalent"
VERDICTS = (HOLDS, FAILS, HERE, NOT_HERE, EQUIVALENT, UNKNOWN)
OURS = "no report says; asked here"  # in place of what was reported
IMAGES = 10_000  # that an accuracy was measured on, where nothing is said: more than in any of the reports
# what differs between two trainings on the same test images, of the variance p (1 - p) / images of an accuracy p
_OF_TRAINING = 0.3
MOST = 1000  # seeds beyond which nobody trains
Format = Callable[[float], str]


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
    images: int = IMAGES,
    names: tuple[str, str] = ("first", "second"),
) -> Finding:
    """Are these accuracies greater than those (or at most `margin` below them), seed by seed?

    `images` is the number of images that they were measured on.
    """
    found = _difference(more, less, images)
    bound = "0" if not margin else points(-margin)
    rule = (
        f"holds if the interval of the difference, seed by seed, lies above {bound}; does not hold if it lies below; "
        "cannot tell if it contains it, or with one seed"
    )
    verdict = _judge_by_bound(found.low, found.high, -margin)
    if not margin:
        rule += f"; but equivalent if it lies within {points(MATTERS).lstrip('+')} of 0"
        if verdict == UNKNOWN and max(-found.low, found.high) <= MATTERS:
            verdict = EQUIVALENT
    off = abs(_mean(found.values) + margin)
    return _undecided(
        Finding(claim, reported, found.measured, verdict, rule, {names[0]: list(more), names[1]: list(less)}),
        _needed(found.values, off if margin else max(off, MATTERS - off), found.floor),
    )


def alike(
    claim: str,
    reported: str,
    one: Sequence[float],
    other: Sequence[float],
    *,
    margin: float,
    images: int = IMAGES,
    names: tuple[str, str] = ("first", "second"),
) -> Finding:
    """Do these accuracies differ by no more than `margin`, in either direction?"""
    found = _difference(one, other, images)
    reach = points(margin).lstrip("+")
    rule = (
        f"equivalent if the interval of the difference, seed by seed, lies within {reach} of 0; does not hold if it "
        "lies beyond; else cannot tell"
    )
    beyond_it, within = found.low > margin or found.high < -margin, max(-found.low, found.high) <= margin
    verdict = FAILS if beyond_it else EQUIVALENT if within else UNKNOWN
    return _undecided(
        Finding(claim, reported, found.measured, verdict, rule, {names[0]: list(one), names[1]: list(other)}),
        _needed(found.values, abs(abs(_mean(found.values)) - margin), found.floor),
    )


def beyond(claim: str, reported: str, values: Sequence[float], bound: float, *, show: Format = scientific) -> Finding:
    """Are the values greater than `bound`?"""
    low, high = interval(values)
    rule = f"holds if the interval lies above {show(bound)}, does not hold if below, else cannot tell"
    return _undecided(
        Finding(
            claim, reported, estimate(values, show), _judge_by_bound(low, high, bound), rule, {"values": list(values)}
        ),
        _needed(values, abs(_mean(values) - bound)),
    )


def within_order(claim: str, reported: float, values: Sequence[float], allowed: Sequence[float]) -> Finding:
    """Are errors at most what arithmetic explains of each? There is no chance in that."""
    worst = max(range(len(values)), key=lambda i: values[i] / allowed[i])
    return exact(
        claim,
        scientific(reported),
        f"at most {scientific(max(values))}; arithmetic allows {scientific(allowed[worst])}",
        all(value <= bound for value, bound in zip(values, allowed, strict=True)),
        "holds if the error of every seed is at most what the arithmetic allows: the difference between centred "
        "differences of steps h and 2h, plus the rounding of their terms",
    )


def ratio(claim: str, reported: str, values: Sequence[float], bound: float, *, below: bool = False) -> Finding:
    """Are these ratios, whose logarithms are averaged, above `bound`, or below it?"""
    logs = [math.log(value) for value in values]
    low, high = interval(logs)
    verdict = _judge_by_bound(low, high, math.log(bound))
    one, other = ("below", "above") if below else ("above", "below")
    finding = Finding(
        claim,
        reported,
        _geometric(values),
        _negate(verdict) if below else verdict,
        f"holds if the interval of the geometric mean lies {one} {times(bound)}, does not hold if {other}; "
        "cannot tell if it contains it, or with one seed",
        {"values": list(values)},
    )
    return _undecided(finding, _needed(logs, abs(_mean(logs) - math.log(bound))))


def about(claim: str, reported: str, values: Sequence[float], expected: float, *, factor: float = 1.5) -> Finding:
    """Is the geometric mean of these ratios about `expected`, that is at most `factor` times as large or small?"""
    logs = [math.log(value) for value in values]
    low, high = interval(logs)
    least, most = math.log(expected / factor), math.log(expected * factor)
    verdict = HOLDS if least <= low and high <= most else FAILS if high < least or low > most else UNKNOWN
    finding = Finding(
        claim,
        reported,
        _geometric(values),
        verdict,
        f"holds if the interval of the geometric mean lies between {times(expected / factor)} and "
        f"{times(expected * factor)}, does not hold if it lies outside; else cannot tell",
        {"values": list(values)},
    )
    return _undecided(finding, _needed(logs, min(abs(_mean(logs) - least), abs(_mean(logs) - most))))


def like_one_run(
    claim: str, reported: float, values: Sequence[float], *, original: bool, drawn: int = 0, within: float = 0.05
) -> Finding:
    """Is the mean of our runs the reported figure, that of a single run, give or take `within`?

    `drawn` is the number of images that an accuracy was measured on where the report used others of the same kind: both
    sets are then samples, and the interval is widened by their sampling error, p (1 - p) / drawn each.
    """
    rule = (
        f"the reported figure is that of one run: holds if the 95 % interval of our mean lies within "
        f"{points(within).lstrip('+')} of it, does not hold if it lies beyond; cannot tell if it is too wide for "
        "either, or on other training images"
    )
    if drawn:
        rule += f"; the interval includes the sampling error of two sets of {drawn} validation images"
    low, high = interval(values, floor=math.sqrt(_OF_TRAINING * _sampling_variance(_mean(values), drawn or IMAGES)))
    measured, verdict = estimate(values, percent), UNKNOWN
    if not original:
        measured += " (other images)"
    elif not math.isnan(low):
        mean = _mean(values)
        half = math.hypot((high - low) / 2, 1.96 * math.sqrt(2 * mean * (1 - mean) / drawn) if drawn else 0.0)
        off = abs(reported - mean)
        verdict = HOLDS if off + half <= within else FAILS if off - half > within else UNKNOWN
        measured += f"; {points(mean - reported)} from the reported figure, known to ± {percent(half)}"
    return Finding(claim, percent(reported), measured, verdict, rule, {"values": list(values)})


def exact(claim: str, reported: str, measured: str, true: bool, rule: str) -> Finding:
    """A finding without chance and without a scale: a quick run decides it."""
    return Finding(claim, reported, measured, HOLDS if true else FAILS, rule, exact=True)


def at_scale(finding: Finding, scale: str, *, quick: bool = False) -> Finding:
    """The same finding at a scale, in words, that is not the published one: what holds, holds there.

    A quick run decides nothing, but for what has no chance in it. With an empty `scale` the finding stays as it is.
    """
    if finding.exact:
        return replace(finding, scale="any")
    if quick:
        return withheld(replace(finding, scale="quick run"), "of a quick run, which decides nothing")
    if not scale:
        return replace(finding, scale="as published")
    verdict = {HOLDS: HERE, FAILS: NOT_HERE}.get(finding.verdict, finding.verdict)
    return replace(finding, verdict=verdict, scale=scale)


def withheld(finding: Finding, why: str) -> Finding:
    """The same finding with no verdict."""
    return replace(finding, verdict=UNKNOWN, rule=f"{finding.rule}; cannot tell {why}", needs=None)


def interval(values: Sequence[float], *, floor: float = 0.0) -> tuple[float, float]:
    """95 % interval of the mean, of a standard deviation of at least `floor`; NaN with fewer than two values."""
    found = statistics.interval(values, resolution=math.sqrt(6) * floor)  # which floors it at resolution / sqrt(6)
    return (math.nan, math.nan) if found.low is None or found.high is None else (found.low, found.high)


def estimate(values: Sequence[float], show: Format) -> str:
    """The mean and half its interval, in words."""
    low, high = interval(values)
    if math.isnan(low):
        return f"{show(_mean(values))} (one seed)"
    return f"{show(_mean(values))} ± {show((high - low) / 2).lstrip('+')}"


def describe_need(needs: int | None) -> str:
    """What would decide a finding that cannot be told; empty where that is not known."""
    if needs is None:
        return ""
    return (
        f"about {needs} seeds would decide it" if needs < MOST else f"not with {MOST:,} seeds: too small a difference"
    )


def _undecided(finding: Finding, needs: int | None) -> Finding:
    """The finding with how many seeds it needs, if it is not decided."""
    return replace(finding, needs=needs) if finding.verdict == UNKNOWN else finding


def _needed(values: Sequence[float], distance: float, floor: float = 0.0) -> int | None:
    """About how many values have an interval that is narrower than `distance` in four of five cases; at most `MOST`.

    None where one value says nothing of the spread, or nothing is `distance` away.
    """
    if len(values) < 2 or not distance > 0:
        return None
    spread = max(stdev(values), floor)
    for count in range(len(values) + 1, MOST):
        if (statistics.student(count - 1) + 0.84) * spread < distance * math.sqrt(count):
            return count
    return MOST


class _Difference(NamedTuple):
    """A difference of accuracies: its interval, both in words, its values by seed, the floor under their spread."""

    low: float
    high: float
    measured: str
    values: list[float]
    floor: float


def _difference(more: Sequence[float], less: Sequence[float], images: int) -> _Difference:
    differences = [a - b for a, b in zip(more, less, strict=True)]
    accuracy = (_mean(more) + _mean(less)) / 2
    floor = math.sqrt(2 * _OF_TRAINING * _sampling_variance(accuracy, images))
    low, high = interval(differences, floor=floor)
    spread = "(one seed)" if math.isnan(low) else f"± {points((high - low) / 2).lstrip('+')}"
    measured = f"{percent(_mean(more))} against {percent(_mean(less))}: {points(_mean(differences))} {spread}"
    return _Difference(low, high, measured, differences, floor)


def _sampling_variance(accuracy: float, images: int) -> float:
    """The variance of a share of this many images; not 0 even where all of them are right."""
    p = min(max(accuracy, 1 / images), 1 - 1 / images)
    return p * (1 - p) / images


def _geometric(values: Sequence[float]) -> str:
    """The geometric mean and how far its interval goes, in words."""
    logs = [math.log(value) for value in values]
    low, high = interval(logs)
    spread = "(one seed)" if math.isnan(low) else f"(times or divided by {math.exp((high - low) / 2):.3g})"
    return f"{times(math.exp(_mean(logs)))} {spread}"


def _judge_by_bound(low: float, high: float, bound: float) -> str:
    if low > bound:
        return HOLDS
    return FAILS if high < bound else UNKNOWN


def _negate(verdict: str) -> str:
    return {HOLDS: FAILS, FAILS: HOLDS}.get(verdict, verdict)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
