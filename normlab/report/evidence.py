"""What the records support, in words: estimates with intervals, the sentence that answers, and the warnings.

The statistics are `normlab.study.statistics`, the choice of the best norm `normlab.study.verdict`; here they
become prose and tables.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from normlab.report.records import Cell, Study, setting_of
from normlab.study.statistics import LEVEL, Comparison
from normlab.study.verdict import edge_warnings

_OPEN = ("pending", "running", "interrupted", "paused")


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

    def margin(self, scale: float = 100, digits: int = 1) -> str:
        """The half width as text; of a share in percent, more than all there is is no figure."""
        return ">100" if scale == 100 and self.half_width > 1 else f"{scale * self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Lead:
    """How far the recommended norm is ahead of another, paired over the seeds they share."""

    norm: str
    difference: Estimate
    detectable: bool
    seeds_needed: int | None


@dataclass(frozen=True)
class Verdict:
    """One sentence that answers the question, and what there is to say beside it.

    `leads` compares the recommended norm, `best`, with every other.
    """

    headline: str
    details: tuple[str, ...] = ()
    best: str | None = None
    leads: tuple[Lead, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student-t 95 % interval of independent values, those that are not finite left out."""
    finite = tuple(value for value in values if math.isfinite(value))
    if not finite:
        return Estimate(math.nan, math.nan, math.nan, ())
    mean = sum(finite) / len(finite)
    if len(finite) == 1:
        return Estimate(mean, math.nan, math.nan, finite)
    half = _t(len(finite)) * statistics.stdev(finite) / math.sqrt(len(finite))
    return Estimate(mean, mean - half, mean + half, finite)


@cache
def _t(count: int) -> float:
    """The quantile of Student's t that goes with so many values; a report asks for it thousands of times."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))


def contenders(study: Study) -> dict[str, list[Cell]]:
    """Every norm's finished cells at its own best setting, the best on validation first."""
    judged = study.judged
    chosen = {norm: study.done(norm, setting_of(axes)) for norm, axes in judged.settings.items()}
    return dict(sorted(chosen.items(), key=lambda item: (item[0] != judged.best, -_validation(item[1]))))


def accuracies(study: Study, field: dict[str, list[Cell]]) -> dict[str, Estimate]:
    """The test accuracy of each contender as the study judged it: no surer than one test image is of the split."""
    return {
        norm: Estimate(i.mean, _or_nan(i.low), _or_nan(i.high), tuple(c.value("test_accuracy") for c in field[norm]))
        for norm, i in study.judged.intervals.items()
    }


def verdict(study: Study) -> Verdict:
    """Which norm to use, and how sure that is.

    The norm (and the setting each norm runs at) is chosen by validation accuracy; what is claimed about it is
    measured on the test split, paired by seed, with Holm's correction over all pairs of norms.
    """
    judged = study.judged
    best = judged.best
    if best is None:
        return Verdict(judged.sentence)
    field = contenders(study)
    scores = accuracies(study, field)
    at = f" at {study.label(field[best][0].setting)}" if len(study.settings) > 1 else ""
    if len(field) == 1:
        return Verdict(
            f"{best} reached {_score(scores[best])} test accuracy{at}; there is nothing to compare it with.", best=best
        )
    leads = tuple(_lead(best, c) for c in judged.comparisons if best in (c.a, c.b))
    if not any(lead.difference.has_interval for lead in leads):
        return _single_seed(best, scores, at, leads)

    ahead = sorted((c for c in leads if c.detectable and c.difference.mean > 0), key=lambda c: c.difference.mean)
    worse = [c for c in leads if c.detectable and c.difference.mean < 0]
    level = [c for c in leads if not c.detectable]
    base = f"{_score(scores[best])} test accuracy over {judged.seeds} seeds{at}"
    details = []
    if worse:
        names = _listed([f"{c.norm} (by {_points(c.difference)})" for c in worse])
        verb = "is" if len(worse) == 1 else "are"
        headline = f"{best} did best on validation: {base}; on the test split {names} {verb} measurably ahead of it."
    elif not level:
        headline = f"Use {best}: {base}, {_points(ahead[0].difference)} above {ahead[0].norm}, the next best."
        ahead = ahead[1:]
    elif not ahead:
        headline = f"No detectable difference: {best} did best on validation with {base}, but no norm is surely behind."
    else:
        headline = f"Use {best}: {base}, with no detectable difference from {_listed([c.norm for c in level])}."
    if ahead:
        details.append(f"Behind: {_listed([f'{c.norm} by {_points(c.difference)}' for c in ahead])}.")
    details += _against_baseline(study.environment.get("baseline"), best, judged.comparisons)
    return Verdict(headline, (*details, *_what_would_settle(best, level)), best, leads)


def _against_baseline(baseline: object, best: str, comparisons: Sequence[Comparison]) -> list[str]:
    """How the norms compare with the one that the user named, if that is not the best anyway."""
    if not isinstance(baseline, str) or baseline == best:
        return []
    seen = [_lead(baseline, c) for c in comparisons if baseline in (c.a, c.b)]
    told = [
        f"{lead.norm} is {_points(lead.difference)} {'behind' if lead.difference.mean > 0 else 'ahead'}"
        for lead in seen
        if lead.detectable
    ]
    level = [lead.norm for lead in seen if not lead.detectable]
    if level:
        told.append(f"no detectable difference from {_listed(level)}")
    return [f"Against the baseline {baseline}: {'; '.join(told)}."] if told else []


def _what_would_settle(best: str, level: Sequence[Lead]) -> list[str]:
    """How many more seeds would tell the closest call, where that can be said."""
    open_ = [lead for lead in level if lead.seeds_needed and lead.seeds_needed > len(lead.difference.values)]
    if not open_:
        return []
    nearest = min(open_, key=lambda lead: lead.seeds_needed or 0)
    gap, seeds = _points(nearest.difference), len(nearest.difference.values)
    if nearest.difference.low * nearest.difference.high > 0:  # only the correction keeps it from being claimed
        return [
            f"Taken alone, the {gap} between {best} and {nearest.norm} stand out, but among all pairs of norms "
            f"{seeds} seeds cannot rule out chance; about {nearest.seeds_needed} would, if the gap is as large as it "
            "looks."
        ]
    return [
        f"If the measured {gap} between {best} and {nearest.norm} are real, about {nearest.seeds_needed} seeds would "
        "show it."
    ]


def _lead(best: str, comparison: Comparison) -> Lead:
    """A comparison seen from the best norm."""
    sign = 1 if comparison.a == best else -1
    found = comparison.difference
    bounds = sorted((sign * _or_nan(found.low), sign * _or_nan(found.high)))
    difference = Estimate(sign * found.mean, bounds[0], bounds[1], (math.nan,) * found.n)
    other = comparison.b if comparison.a == best else comparison.a
    return Lead(other, difference, comparison.detectable, comparison.seeds_needed)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def warnings(study: Study) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    for status in dict.fromkeys(cell.status for cell in study.cells if cell.status not in ("done", *_OPEN)):
        cells = [cell for cell in study.cells if cell.status == status]
        named = [f"{cell.norm} (seed {cell.seed}{_because(cell)})" for cell in cells]
        shown = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
        found.append(f"{len(cells)} of {len(study.cells)} cells {status}: {shown}. They are not in the averages.")
    if open_ := sum(cell.status in _OPEN for cell in study.cells):
        verb = "is" if open_ == 1 else "are"
        found.append(f"{open_} of {len(study.cells)} cells {verb} not finished; what is said here may change.")
    counts = {norm: len(cells) for norm, cells in contenders(study).items()}
    single = [norm for norm, count in counts.items() if count == 1]
    if single:
        whom = _whom(single, study)
        verb = "was" if whom == "Every norm" or len(single) == 1 else "were"
        found.append(f"{whom} {verb} trained with a single seed: no interval, and small differences are chance.")
    elif len(set(counts.values())) > 1:
        found.append("Some norms have fewer finished seeds than others; comparisons use the seeds they share.")
    tuning = study.raw.get("tuning")
    return found + (edge_warnings(tuning) if tuning else _edges(study))


def _edges(study: Study) -> list[str]:
    """The best learning rate at the end of the list that was tried is a reason to try further."""
    rates = sorted({float(cell.axes["lr"]) for cell in study.cells if "lr" in cell.axes})
    if len(rates) < 2:
        return []
    low: list[str] = []
    high: list[str] = []
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


def _single_seed(best: str, scores: dict[str, Estimate], at: str, leads: tuple[Lead, ...]) -> Verdict:
    runner = max((norm for norm in scores if norm != best), key=lambda norm: scores[norm].mean)
    headline = (
        f"{best} did best on validation and reached {_percent(scores[best].mean)} test accuracy{at}; "
        f"{runner} reached {_percent(scores[runner].mean)}."
    )
    detail = "One seed: no interval, so this does not yet show that any norm is better; --seeds 3 or more would."
    return Verdict(headline, (detail,), best, leads)


def _validation(cells: Sequence[Cell]) -> float:
    mean = estimate([cell.last("val_accuracy") for cell in cells]).mean
    return -math.inf if math.isnan(mean) else mean


def _because(cell: Cell) -> str:
    if cell.reason:
        return f": {cell.reason}"
    return f", epoch {len(cell.epochs)}" if cell.status == "diverged" else ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _score(score: Estimate) -> str:
    return f"{100 * score.mean:.1f} ± {score.margin()} %" if score.has_interval else _percent(score.mean)


def _points(difference: Estimate) -> str:
    text = f"{abs(100 * difference.mean):.1f} points"
    if not difference.has_interval:
        return text
    low, high = sorted((abs(100 * difference.low), abs(100 * difference.high)))
    if difference.low * difference.high < 0:
        sign = 1 if difference.mean >= 0 else -1
        low, high = sorted((100 * sign * difference.low, 100 * sign * difference.high))
    return f"{text} [{low:.1f}, {high:.1f}]".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
