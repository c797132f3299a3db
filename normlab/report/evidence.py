"""What the records support: estimates with intervals, paired comparisons, and the sentence that says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normlab.report.records import Cell, Study

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; `low` and `high` are NaN for a single seed."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low)


@dataclass(frozen=True)
class Comparison:
    """How far the recommended norm is ahead of another, paired over their common seeds.

    `p_value` is corrected for the number of comparisons (Holm); NaN for a single seed.
    """

    norm: str
    difference: Estimate
    p_value: float

    @property
    def behind(self) -> bool:
        return self.p_value < 1 - CONFIDENCE and self.difference.mean > 0


@dataclass(frozen=True)
class Verdict:
    """One sentence that answers the question, and what there is to say beside it."""

    headline: str
    details: tuple[str, ...]
    best: str | None = None
    comparisons: tuple[Comparison, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student-t 95 % interval of independent values, those that are not finite left out."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Estimate(math.nan, math.nan, math.nan, ())
    mean, (low, high) = float(np.mean(finite)), (math.nan, math.nan)
    if len(finite) > 1:
        from scipy import stats

        spread = stats.sem(finite) * stats.t.ppf(0.5 + CONFIDENCE / 2, len(finite) - 1)
        low, high = mean - spread, mean + spread
    return Estimate(mean, float(low), float(high), tuple(finite))


def compare(ours: Sequence[Cell], theirs: Sequence[Cell], column: str) -> tuple[Estimate, float]:
    """The paired difference ours - theirs over common seeds, and its two-sided p-value, uncorrected."""
    right = {cell.seed: cell.value(column) for cell in theirs}
    pairs = [cell.value(column) - right[cell.seed] for cell in ours if cell.seed in right]
    difference = estimate(pairs)
    if len(difference.values) < 2:
        return difference, math.nan
    if np.ptp(difference.values) == 0:
        return difference, 0.0 if difference.mean else 1.0
    from scipy import stats

    return difference, float(stats.ttest_1samp(difference.values, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and is not counted."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, running = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def best_setting(study: Study, norm: str) -> tuple[str, ...] | None:
    """The setting at which this norm did best on the validation split, by its mean over seeds."""
    scores = {
        setting: estimate([cell.last("val_accuracy") for cell in cells]).mean
        for setting in study.settings
        if (cells := study.done(norm, setting))
    }
    known = {setting: score for setting, score in scores.items() if math.isfinite(score)}
    return max(known, key=lambda setting: known[setting]) if known else next(iter(scores), None)


def contenders(study: Study) -> dict[str, list[Cell]]:
    """Every norm's finished cells at its own best setting, the best on validation first."""
    chosen = {
        norm: study.done(norm, setting) for norm in study.norms if (setting := best_setting(study, norm)) is not None
    }
    return dict(sorted(chosen.items(), key=lambda item: -_validation(item[1])))


def verdict(study: Study) -> Verdict:
    """Which norm to use, and how sure that is.

    The norm (and the setting each norm runs at) is chosen by validation accuracy; what is claimed about it is
    measured on the test split, paired by seed, with Holm's correction over all comparisons.
    """
    field = contenders(study)
    if not field:
        return Verdict("Nothing finished, so there is nothing to compare yet.", ())
    best, *others = field
    scores = {norm: estimate([cell.value("test_accuracy") for cell in cells]) for norm, cells in field.items()}
    if not scores[best].values:
        return Verdict(f"{best} did best on validation; the test split has not been evaluated yet.", (), best)
    at = _where(study, field[best])
    if not others:
        return Verdict(
            f"{best} reached {_score(scores[best])} test accuracy{at}.",
            ("Nothing to compare it with.",),
            best,
        )

    raw = [compare(field[best], field[other], "test_accuracy") for other in others]
    corrected = holm([p for _, p in raw])
    comparisons = tuple(
        Comparison(other, difference, p) for other, (difference, _), p in zip(others, raw, corrected, strict=True)
    )
    if all(len(comparison.difference.values) < 2 for comparison in comparisons):
        return _single_seed(best, scores, at, comparisons)

    level = [c for c in comparisons if not c.behind]
    behind = [c for c in comparisons if c.behind]
    seeds = len(scores[best].values)
    base = f"{_score(scores[best])} test accuracy over {seeds} seeds{at}"
    if not level:
        closest = min(behind, key=lambda c: c.difference.mean)
        headline = f"Use {best}: {base}, {_points(closest.difference)} above {closest.norm}, the next best."
        return Verdict(headline, (), best, comparisons)
    if not behind:
        headline = f"No detectable difference: {best} reached {base}, and none of the others is measurably apart."
    else:
        headline = f"Use {best}: {base}, with no detectable difference from {_listed([c.norm for c in level])}."
    details = []
    if behind:
        gaps = [f"{c.norm} by {_points(c.difference)}" for c in sorted(behind, key=lambda c: c.difference.mean)]
        details.append(f"Behind it: {_listed(gaps)}.")
    closest = max(level, key=lambda c: c.difference.mean)
    if closest.difference.mean > 0:
        more = seeds_needed(closest.difference)
        settled = f"about {more} seeds would show it" if more else "no reasonable number of seeds would show it"
        gap = f"{_points(closest.difference)} between {best} and {closest.norm}"
        details.append(f"If the measured {gap} are real, {settled}.")
    return Verdict(headline, tuple(details), best, comparisons)


def seeds_needed(difference: Estimate, most: int = 50) -> int | None:
    """The seeds that would make this mean difference, at its measured spread, exclude zero; None beyond `most`."""
    if len(difference.values) < 2 or difference.mean == 0:
        return None
    from scipy import stats

    spread = float(np.std(difference.values, ddof=1))
    for count in range(len(difference.values) + 1, most + 1):
        if stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * spread / math.sqrt(count) < abs(difference.mean):
            return count
    return None


def warnings(study: Study) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    for status in dict.fromkeys(cell.status for cell in study.cells):
        cells = [cell for cell in study.cells if cell.status == status]
        if status != "done":
            named = [f"{cell.norm} (seed {cell.seed}{_because(cell)})" for cell in cells]
            shown = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
            found.append(f"{len(cells)} of {len(study.cells)} cells {status}: {shown}. They are not in the averages.")
    counts = {(norm, setting): len(study.done(norm, setting)) for norm in study.norms for setting in study.settings}
    single = sorted({norm for (norm, _), count in counts.items() if count == 1})
    if single:
        whom = _whom(single, study)
        verb = "was" if whom == "Every norm" or len(single) == 1 else "were"
        found.append(f"{whom} {verb} trained with a single seed: no interval, and small differences are chance.")
    elif len({count for count in counts.values() if count}) > 1:
        found.append("Some norms have fewer finished seeds than others; comparisons use the seeds they share.")
    return found + _edges(study)


def _edges(study: Study) -> list[str]:
    """The best learning rate at the end of the list that was tried is a reason to try further."""
    rates = sorted({float(cell.axes["lr"]) for cell in study.cells if "lr" in cell.axes})
    if len(rates) < 2:
        return []
    low, high = [], []
    for norm, cells in contenders(study).items():
        rate = float(cells[0].axes["lr"])
        (low if rate == rates[0] else high if rate == rates[-1] else []).append(norm)
    sides = ((low, "smallest", rates[0]), (high, "largest", rates[-1]))
    return [
        f"{whom} did best at the {side} learning rate tried ({rate:g}): the optimum may lie beyond it."
        for norms, side, rate in sides
        if (whom := _whom(norms, study))
    ]


def _whom(norms: Sequence[str], study: Study) -> str:
    """The norms by name, or all at once; nothing for none."""
    if len(norms) > 1 and set(norms) == set(study.norms):
        return "Every norm"
    return _listed(norms) if norms else ""


def _single_seed(best: str, scores: dict[str, Estimate], at: str, comparisons: tuple[Comparison, ...]) -> Verdict:
    runner = max((norm for norm in scores if norm != best), key=lambda norm: scores[norm].mean)
    headline = f"{best} did best on validation and reached {_percent(scores[best].mean)} test accuracy{at}"
    headline += f"; {runner} reached {_percent(scores[runner].mean)}." if scores[runner].values else "."
    detail = "One seed: no interval, so this does not yet show that any norm is better; --seeds 3 or more would."
    return Verdict(headline, (detail,), best, comparisons)


def _validation(cells: Sequence[Cell]) -> float:
    mean = estimate([cell.last("val_accuracy") for cell in cells]).mean
    return -math.inf if math.isnan(mean) else mean


def _where(study: Study, cells: Sequence[Cell]) -> str:
    return f" at {study.label(cells[0].setting)}" if len(study.settings) > 1 else ""


def _because(cell: Cell) -> str:
    if cell.reason:
        return f": {cell.reason}"
    return f", epoch {len(cell.epochs)}" if cell.status == "diverged" else ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _score(score: Estimate) -> str:
    return f"{100 * score.mean:.1f} ± {100 * score.half_width:.1f} %" if score.has_interval else _percent(score.mean)


def _points(difference: Estimate) -> str:
    text = f"{abs(100 * difference.mean):.1f} points"
    if not difference.has_interval:
        return text
    low, high = sorted((abs(100 * difference.low), abs(100 * difference.high)))
    if difference.low * difference.high < 0:
        sign = 1 if difference.mean >= 0 else -1
        low, high = sorted((100 * sign * difference.low, 100 * sign * difference.high))
    return f"{text} [{low:.1f}, {high:.1f}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
