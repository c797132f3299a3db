"""From records to one sentence that is an action: which norm to use, which to avoid, and what is still open.

The sentence rests on simultaneous intervals (`normlab.study.statistics`): a norm is behind if some other is surely
better, and the best set is what is left. Whoever prints a verdict prints this one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from normlab.errors import DataError, UsageError
from normlab.norms.family import NormEntry, parse
from normlab.study.axes import GROUPING
from normlab.study.ending import kept_of
from normlab.study.failures import OFTEN, excess, failing, rate
from normlab.study.metric import DEFAULT, Metric, metric_named
from normlab.study.statistics import (
    RESOLUTION,
    Comparison,
    Interval,
    chances,
    compare_all,
    mean_intervals,
    seeds_needed,
)

Record = Mapping[str, Any]  # a cell as in results.json

MATTERS = 0.005  # a smaller difference of accuracies is none
_ONE_BY_ONE = 8  # norms to avoid, at most, whose differences a sentence tells
_NEAR = 0.02  # how far behind the leader a norm may seem to be and still be preferred to it
_PERCENT = 2.0  # an accuracy that is greater is no share
_COLLAPSED = 0.25  # of the best accuracy of all, where nothing is known of chance
_SMALL_BATCH = 8
UNLEARNED = "no better than a linear classifier on the pixels"
CHANCE, LARGEST, LINEAR = "chance", "largest class", "linear classifier"  # the floors by name
_CALLED = {LARGEST: "the largest class", LINEAR: "a linear classifier on the pixels"}
_TELLING = 0.2  # a bound on a difference that is wider than this is not worth printing


@dataclass(frozen=True)
class Verdict:
    """What a study says: the sentence, the norm to use, and the evidence they rest on.

    `best` is the norm to use; `best_set` are the norms that cannot be distinguished from the best and are not to be
    avoided, `behind` those that some norm is surely better than or fails less often than, and `avoid` maps each norm to
    stay away from to the reason. `accuracy` is the test accuracy of `best`, corrected for having been chosen;
    `intervals` are the mean test accuracies of all norms as measured, each with its own 95 % interval; `differences`
    are those of each norm minus `best`, and `comparisons` all pairs, whose intervals hold together, at this and at
    every earlier number of seeds; `chances` has the probability, for some numbers of seeds in all, that they decide the
    open question which is nearest to being decided. `failures` maps a norm to the trainings that did not learn and all
    that ended. `settings` is where each norm did best on validation, `floors` what needs no network, and `warnings`
    what a reader has to know besides.
    """

    sentence: str
    best: str | None = None
    best_set: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    avoid: dict[str, str] = field(default_factory=dict)
    metric: str = "test accuracy"
    seeds: int = 0
    accuracy: Interval | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    differences: dict[str, Interval] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    chances: dict[int, float] = field(default_factory=dict)
    failures: dict[str, tuple[int, int]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.sentence

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)


def judge_results(results: Mapping[str, Any], *, matters: float | None = None) -> Verdict:
    """The verdict of a document as in results.json, with all that its environment says about the study."""
    facts = results.get("environment") or {}
    return judge(
        results["cells"],
        baseline=facts.get("baseline"),
        test_images=facts.get("test_images"),
        matters=matters if matters is not None else facts.get("matters", MATTERS),
        floors=_floors(facts),
        tuning=results.get("tuning") or (),
        metric=facts.get("metric", DEFAULT),
    )


def judge(
    cells: Sequence[Record],
    *,
    baseline: str | None = None,
    test_images: int | None = None,
    matters: float = MATTERS,
    floors: Mapping[str, float] | None = None,
    tuning: Sequence[Mapping[str, Any]] = (),
    metric: str = DEFAULT,
) -> Verdict:
    """The verdict of a study's cells, in whatever order they come.

    Each norm is taken at the setting (batch size, optimizer, learning rate ...) where its mean validation accuracy
    over the seeds is highest; what is said of it is then measured on the test split. A training that diverged, or that
    ended at chance, counts as a failure and not in the mean. Norms whose difference lies within `matters` are the
    same. With `baseline` the sentence compares with that norm besides. `test_images` is the size of the test split,
    `floors` the accuracies by name of what needs no network (chance, the largest class, a linear classifier), and
    `tuning` what was tried for each norm first, as in results.json. `metric` (`normlab.study.metric`) takes the place
    of accuracy in what is compared and chosen; whether a training learned is judged by its accuracy in any case.
    Raises DataError for an accuracy in percent.
    """
    by = metric_named(metric)
    floors = {name: float(value) for name, value in (floors or {}).items()}
    warnings = _warnings(cells)
    trained = _choose_settings(cells, _trivial_accuracy(floors), test_images, by)
    if metric != DEFAULT:
        floors = {}  # which are accuracies
    unmeasured = {norm: t.unmeasured for norm, t in trained.items() if t.unmeasured}
    warnings += [f"{norm}: {count} trainings have no {by.title} in their records" for norm, count in unmeasured.items()]
    trained = {norm: t for norm, t in trained.items() if t.values or not t.unmeasured}
    learned = {norm: t for norm, t in trained.items() if t.values}
    failures = {norm: t.failures for norm, t in trained.items()}
    resolution = 1 / test_images if test_images else RESOLUTION
    values = {norm: t.values for norm, t in learned.items()}
    collapsed = {norm: t.ended for norm, t in trained.items() if t.ended and not t.values}
    measured: dict[str, Any] = {"resolution": resolution, "images": test_images}
    intervals = mean_intervals(values, resolution=resolution) | mean_intervals(collapsed, resolution=resolution)
    shared: dict[str, Any] = {
        "failures": failures,
        "floors": floors,
        "warnings": warnings,
        "intervals": intervals,
        "settings": {norm: trained[norm].setting for norm in intervals},
        "metric": by.title,
    }
    if not learned and unmeasured:
        said = f"No verdict: {sum(unmeasured.values())} trainings learned, but have no {by.title} in their records. "
        return Verdict(said + "Compare by accuracy, or train them again with --force.", **shared)
    if not learned:
        return Verdict(_explain_no_learning(cells, failures, floors), **shared)
    comparisons = compare_all(values, matters=matters, **measured)
    behind = behind_others(comparisons, failures)
    hopeless = [norm for norm in trained if excess(failures, norm) > 1 / 2]
    best_set = [norm for norm in learned if norm not in behind and norm not in hopeless] or [
        norm for norm in learned if norm not in behind
    ]
    case = _Case(learned, comparisons, intervals, best_set, behind, failures, floors, matters, measured, by.title)
    if not any(map(case.beats_floors, best_set)):
        return Verdict(case.explain_below_floors(), comparisons=comparisons, **shared)
    best, alike = case.recommended()
    avoid = case.avoid(best, list(trained))
    best_set = [norm for norm in best_set if norm not in avoid]
    case = replace(case, best_set=best_set)
    seen = {c.b: c for c in case.seen_from(best)}
    nearest, likely = case.nearest(best, [norm for norm in best_set if norm != best])
    seeds = seeds_needed(likely)
    needed = None if nearest is None or seeds is None else (nearest, seeds)
    accuracy = case.corrected(best, alike)
    words = [
        *case.advice(best, alike, accuracy, avoid, seen, needed),
        *case.against(baseline, best),
        *_learning_rate(best, learned, cells, tuning),
    ]
    return Verdict(
        " ".join(words),
        best,
        best_set=[best, *(norm for norm in best_set if norm != best)],
        behind=behind,
        avoid=avoid,
        seeds=len(values[best]),
        accuracy=accuracy,
        differences={norm: c.difference.negated for norm, c in seen.items()},
        comparisons=[
            replace(c, seeds_needed=needed[1]) if needed and {c.a, c.b} == {best, needed[0]} else c for c in comparisons
        ],
        chances=likely,
        **shared,
    )


@dataclass(frozen=True)
class _Trained:
    """A norm at its best setting: the accuracies of the trainings that learned, by seed, and of all that ended.

    `failures` is how many did not learn, and of how many.
    """

    setting: dict[str, Any]
    values: list[float]
    ended: list[float]
    validation: float
    seconds: float
    failures: tuple[int, int]

    @property
    def unmeasured(self) -> int:
        """How many learned whose records lack what is compared."""
        failed, ended = self.failures
        return ended - failed - len(self.values)


@dataclass(frozen=True)
class _Case:
    """Everything that the sentence is made of."""

    learned: Mapping[str, _Trained]
    comparisons: Sequence[Comparison]
    intervals: Mapping[str, Interval]
    best_set: Sequence[str]
    behind: Sequence[str]
    failures: Mapping[str, tuple[int, int]]
    floors: Mapping[str, float]
    matters: float
    measured: Mapping[str, Any]  # in which steps, and on how many images
    metric: str

    def seen_from(self, norm: str) -> list[Comparison]:
        """How this norm compares with every other."""
        return [c.seen_from(norm) for c in self.comparisons if norm in (c.a, c.b)]

    def recommended(self) -> tuple[str, list[str]]:
        """The norm to use, and those that do as well: of the best set, near the leader on validation.

        Of these the most usual is preferred, then the cheapest; with small batches first what does not depend on them.
        """
        trained = [norm for norm in self.best_set if self.beats_floors(norm)]
        least = min(rate(self.failures, norm) for norm in trained)
        sound = [norm for norm in trained if rate(self.failures, norm) - least < OFTEN]
        sound = [norm for norm in sound if self.intervals[norm].n > 1] or sound
        leader = max(sound, key=lambda norm: (self.learned[norm].validation, norm))
        if not any(c.error is not None for c in self.comparisons):
            return leader, []
        near = [norm for norm in sound if norm == leader or self._is_near(leader, norm)]
        best = min(near, key=self._rank)
        return best, sorted((norm for norm in near if norm != best), key=self._rank)

    def _is_near(self, leader: str, norm: str) -> bool:
        (c,) = (c for c in self.seen_from(leader) if c.b == norm)
        if c.error is None:
            return False
        gaps = self.learned[leader].validation - self.learned[norm].validation, c.difference.mean
        return c.same or max(gaps) <= max(self.matters, min(2 * c.error, _NEAR))

    def _rank(self, norm: str) -> tuple[Any, ...]:
        entry = _entry(norm)
        return self._small_batch(norm) and entry.batchwise, entry.usual, self.cost(norm), norm

    def _small_batch(self, norm: str) -> bool:
        size = self.learned[norm].setting.get("batch_size")
        return isinstance(size, int) and size <= _SMALL_BATCH

    def cost(self, norm: str) -> float:
        """Seconds of an epoch as measured, or where some norm has none the cost that its entry states."""
        if all(math.isfinite(t.seconds) for t in self.learned.values()):
            return self.learned[norm].seconds
        return _entry(norm).cost

    def corrected(self, best: str, alike: Sequence[str]) -> Interval:
        """The accuracy of the norm to use, drawn towards those that do as well as far as chance may have chosen it.

        Among norms that differ by no more than their errors the best-looking one is no better than their mean.
        """
        found = self.intervals[best]
        rivals = [i for norm in (best, *alike) if (i := self.intervals[norm]).n > 1]
        if found.low is None or found.high is None or len(rivals) < 2:
            return found
        errors = [c.error for c in self.comparisons if {c.a, c.b} <= {best, *alike} and c.error is not None]
        chance = float(np.mean(np.square(errors))) / 2 if errors else 0.0
        means = [i.mean for i in rivals]
        real = max(0.0, float(np.var(means, ddof=1)) - chance)
        shift = (float(np.mean(means)) - found.mean) * (chance / (chance + real) if chance + real else 0.0)
        shift = min(0.0, shift)
        return Interval(found.mean + shift, max(0.0, found.low + shift), min(1.0, found.high + shift), found.n)

    def avoid(self, best: str, norms: Sequence[str]) -> dict[str, str]:
        """The norms to stay away from, and why."""
        told = {c.b for c in self.seen_from(best) if c.detectable and c.difference.mean > 0}
        linear = self.floors.get(LINEAR, 0.0)
        found = {}
        for norm in norms:
            why = []
            failed, ended = self.failures[norm]
            if norm in self.behind and (worst := self._describe_lag(norm, best if norm in told else None)):
                why.append(worst)
            more = rate(self.failures, norm) - rate(self.failures, best)
            if norm != best and failed and (more >= OFTEN or norm not in self.learned):
                why.append(f"failed to learn in {failed} of {ended} seeds")
            if not why and norm in self.learned and self.intervals[norm].mean <= linear < self.intervals[best].mean:
                why.append(f"{UNLEARNED}, {percent(linear)}")
            if why:
                found[norm] = "; ".join(why)
        return found

    def _describe_lag(self, norm: str, other: str | None) -> str:
        """How far a norm is behind another in words, or behind the norm that is furthest ahead of it for sure."""
        ahead = [c for c in self.seen_from(norm) if c.detectable and c.difference.mean < 0]
        if other is not None:
            (found,) = (c for c in ahead if c.b == other)
            return in_points(found.difference, " points")
        if not ahead:
            return ""
        found = min(ahead, key=lambda c: (c.difference.mean, c.b))
        return f"{in_points(found.difference, ' points')} against {found.b}"

    def nearest(self, best: str, undecided: Sequence[str]) -> tuple[str | None, dict[int, float]]:
        """The norm whose comparison with the best is nearest to being decided, and how likely seeds decide it."""
        gaps = {c.b: abs(c.difference.mean) / c.error for c in self.seen_from(best) if c.b in undecided and c.error}
        if not gaps:
            return None, {}
        norm = max(gaps, key=lambda norm: (gaps[norm], norm))
        return norm, chances({norm: t.values for norm, t in self.learned.items()}, best, norm, **self.measured)

    def advice(
        self,
        best: str,
        alike: Sequence[str],
        accuracy: Interval,
        avoid: Mapping[str, str],
        seen: Mapping[str, Comparison],
        needed: tuple[str, int] | None,
    ) -> list[str]:
        """The parts of the sentence: what to use, what to prefer, what to avoid, what is open."""
        seeds = accuracy.n
        score = f"{_score(accuracy)} {self.metric} over {_seeds(seeds)}"
        undecided = [n for n in seen if n in self.best_set and n not in alike]
        open_ = [f"{norm} ({in_points(seen[norm].difference.negated, ' points')})" for norm in undecided]
        if len(self.learned) == 1 and not avoid:
            return [f"{best}: {score}; there is nothing to compare it with."]
        parts = []
        rivals = [c for c in seen.values() if c.b in self.best_set]
        if seen and (seeds == 1 or (rivals and all(c.error is None for c in rivals))):
            parts.append(
                f"{best} comes first with {score}, but one seed has no interval: this may be luck. "
                "Run three seeds or more."
            )
            open_ = []
        elif alike:
            names = [best, *alike]
            among = [c for c in self.comparisons if {c.a, c.b} <= set(names)]
            reach = max(max(-(c.difference.low or 0), c.difference.high or 0) for c in among)
            how = "no difference that matters" if all(c.same for c in among) else "not distinguished"
            within = f": within {_number(reach)} points" if reach < _TELLING else ""
            parts.append(f"Use {listed(names, 'or')} ({how}{within}).")
            parts.append(f"Prefer {best}: {self._explain_choice(best, names)}; {score}.")
        else:
            parts.append(f"Use {best}: {score}.")
        unlearned = [norm for norm, why in avoid.items() if why.startswith(UNLEARNED)]
        if worse := {norm: why for norm, why in avoid.items() if norm not in unlearned}:
            each = [f"{norm} ({why})" for norm, why in worse.items()]
            parts.append(f"Avoid {listed(each) if len(each) <= _ONE_BY_ONE else self._summarize(worse, best, seen)}.")
        if unlearned:
            have = "has" if len(unlearned) == 1 else "have"
            parts.append(f"{listed(unlearned)} {have} not learned ({avoid[unlearned[0]]}).")
        if open_:
            more = "" if needed is None or needed[0] not in undecided else self._format_needed(best, *needed)
            parts.append(f"Not yet distinguished from {best}: {listed(open_)}{more}.")
        return parts

    def _format_needed(self, best: str, norm: str, seeds: int) -> str:
        """How many more seeds would settle a norm; of two that have not equally many, for the one that has fewer."""
        more = max(1, seeds - min(self.intervals[best].n, self.intervals[norm].n))
        return f"; about {more} more seed{'' if more == 1 else 's'} would settle {norm}"

    def _summarize(self, worse: Mapping[str, str], best: str, seen: Mapping[str, Comparison]) -> str:
        """Many norms to stay away from: those that are behind with the range of it, the others by what they did."""
        groups: dict[str, list[str]] = defaultdict(list)
        behind = [norm for norm in worse if norm in self.behind and norm in seen]
        if behind:
            lags = [100 * seen[norm].difference.mean for norm in behind]
            groups[f"{min(lags):.1f} to {max(lags):.1f} points behind {best}, each surely behind some norm"] = behind
        for norm, why in worse.items():
            if norm not in behind:
                groups[why].append(norm)
        return "; ".join(f"{listed(norms)} ({why})" for why, norms in groups.items())

    def beats_floors(self, norm: str) -> bool:
        """Whether a norm does better than all that needs no network."""
        return self.intervals[norm].mean > max(self.floors.values(), default=-math.inf)

    def explain_below_floors(self) -> str:
        """What can be said where no norm that could be recommended does better than all that needs no network."""
        first = max(self.best_set, key=lambda norm: (self.intervals[norm].mean, norm))
        name, floor = max(self.floors.items(), key=lambda item: item[1])
        what = f"{_CALLED.get(name, name)} ({percent(floor)})"
        found = f"{_score(self.intervals[first])} {self.metric} over {_seeds(self.intervals[first].n)}"
        above = [norm for norm in self.learned if self.beats_floors(norm)]
        if above:
            failed, ended = (sum(self.failures[norm][i] for norm in above) for i in (0, 1))
            said = (
                f"only {listed(above)} learned more than {what}, but {failed} of {ended} trainings failed; "
                f"{first}, which is sounder, has {found}."
            )
        else:
            said = f"nothing learned; {first} comes first with {found}, which is no better than {what}."
        return f"No verdict: {said} Try more epochs, another learning rate or a larger network."

    def _explain_choice(self, best: str, names: Sequence[str]) -> str:
        entry, others = _entry(best), [norm for norm in names if norm != best]
        costs = [self.cost(norm) for norm in others]
        reasons = [
            ("it does not depend on the batch", self._small_batch(best) and not entry.batchwise),
            ("cheapest", self.cost(best) <= min(costs)),
            ("standard", entry.usual < min(_entry(norm).usual for norm in others)),
        ]
        return ", ".join(reason for reason, holds in reasons if holds) or "first by name"

    def against(self, baseline: str | None, best: str) -> list[str]:
        """How the norms compare with the one that the user named, if that is not the one to use anyway."""
        if baseline is None or baseline == best or baseline not in self.learned:
            return []
        seen = self.seen_from(baseline)
        said = [f"{c.b} {in_points(c.difference.negated, ' points')}" for c in seen if c.detectable]
        level = [c.b for c in seen if not c.detectable]
        if level:
            said.append(f"{listed(level)} {'is' if len(level) == 1 else 'are'} not distinguished from it")
        return [f"Against the baseline {baseline}: {'; '.join(said)}."]


def _choose_settings(
    cells: Sequence[Record], trivial: float | None, test_images: int | None, metric: Metric
) -> dict[str, _Trained]:
    """For each norm, the setting of highest mean on validation among those where most trainings learned.

    The norms come in an order that does not depend on that of the cells: the best first, then by name.
    """
    grouped: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for cell in _ended_cells(cells):
        setting = json.dumps([cell.get(axis) for axis in GROUPING], default=str)
        grouped[str(cell["norm"])][setting].append(cell)
    found = {}
    bar = _bar([_accuracy(cell) for cell in _ended_cells(cells)], trivial, test_images)
    for norm, settings in grouped.items():
        made = [_at_setting(of_setting, bar, metric) for _, of_setting in sorted(settings.items())]
        found[norm] = max(made, key=lambda t: (1 - t.failures[0] / t.failures[1], t.validation))
    return dict(sorted(found.items(), key=lambda item: (-_mean(item[1].values), item[0])))


def _ended_cells(cells: Sequence[Record]) -> list[Record]:
    return [cell for cell in cells if cell.get("status", "done") in ("done", "diverged")]


def _at_setting(cells: Sequence[Record], bar: float, metric: Metric) -> _Trained:
    ended = sorted(cells, key=lambda cell: (_order_of_seed(cell.get("seed")), _accuracy(cell)))
    values = [_accuracy(cell) for cell in ended]
    learned = [cell for cell, v in zip(ended, values, strict=True) if v > bar or v == bar == 0.0]
    validation = [v for cell in learned if math.isfinite(v := _validation(cell, metric))]
    measured = [v for cell in learned if math.isfinite(v := _test_figure(cell, metric))]
    seconds = [s for cell in learned for e in cell.get("epochs") or () if math.isfinite(s := _number_of(e, "seconds"))]
    return _Trained(
        {axis: cells[0].get(axis) for axis in GROUPING},
        measured,
        [v for cell in ended if math.isfinite(v := _test_figure(cell, metric))],
        _mean(validation or measured),
        float(np.median(seconds)) if seconds else math.nan,
        (len(ended) - len(learned), len(ended)),
    )


def _order_of_seed(seed: Any) -> tuple[float, str]:
    """Where a seed stands among others: numbers by size, also those written as text, then other text."""
    try:
        return float(seed or 0), ""
    except (TypeError, ValueError):
        return math.inf, str(seed)


def _bar(values: Sequence[float], trivial: float | None, test_images: int | None) -> float:
    """What a training has to reach to have learned anything: more than the trivial floor and chance about it.

    Where no floor is known, more than a fraction of the best.
    """
    if trivial is None:
        return _COLLAPSED * max((v for v in values if math.isfinite(v)), default=0.0)
    return trivial + 2 * math.sqrt(trivial * (1 - trivial) / (test_images or 1 / RESOLUTION))


def behind_others(comparisons: Sequence[Comparison], failures: Mapping[str, tuple[int, int]]) -> list[str]:
    """The norms that some sound one is surely better than, or that surely fail more often than others."""
    pairs = ((c.a, c.b) if c.difference.mean > 0 else (c.b, c.a) for c in comparisons if c.detectable)
    worse = {norm for better, norm in pairs if excess(failures, better) < OFTEN} | set(failing(failures))
    return [norm for norm in failures if norm in worse]


def _floors(facts: Mapping[str, Any]) -> dict[str, float]:
    """The floors that a study recorded, or at least chance."""
    found = dict(facts.get("floors") or {})
    classes = facts.get("class_names")
    if not found and classes:
        found = {CHANCE: 1 / len(classes)}
    return found


def _trivial_accuracy(floors: Mapping[str, float]) -> float | None:
    """The best accuracy without looking at the image; None where it is unknown."""
    return max((value for name, value in floors.items() if name in (CHANCE, LARGEST)), default=None)


def _explain_no_learning(
    cells: Sequence[Record], failures: Mapping[str, tuple[int, int]], floors: Mapping[str, float]
) -> str:
    """What can be said while no training has ended well."""
    if failures:
        failed, ended = (sum(counts[i] for counts in failures.values()) for i in (0, 1))
        above = f" (no better than {percent(_trivial_accuracy(floors) or 0)}, which needs no network)" if floors else ""
        return (
            f"No verdict: nothing learned{above}; {failed} of {ended} trainings failed. "
            "Try a smaller learning rate, more epochs or another network."
        )
    started = [c for c in cells if c.get("epochs")]
    if not started:
        return "No verdict: no cell has finished."
    epoch = min(len(c["epochs"]) for c in started)
    if not any(math.isfinite(_number_of(c["epochs"][epoch - 1], "val_accuracy")) for c in started):
        return "No verdict: no cell has finished."
    leader = max(started, key=lambda c: (_finite(c["epochs"][epoch - 1], "val_accuracy"), str(c["norm"])))
    planned = leader.get("planned_epochs") or max(len(c["epochs"]) for c in started)
    return (
        f"No verdict yet: no cell has finished. After epoch {epoch} of {planned}, {leader['norm']} has the highest "
        f"validation accuracy ({percent(_number_of(leader['epochs'][epoch - 1], 'val_accuracy'))}) of "
        f"{len(started)} trainings."
    )


def _learning_rate(
    best: str, learned: Mapping[str, _Trained], cells: Sequence[Record], tuning: Sequence[Mapping[str, Any]]
) -> list[str]:
    """That all this holds at one learning rate, if none was sought or the best is at the edge of what was tried."""
    rate = _number_of(learned[best].setting, "lr")
    if not math.isfinite(rate):
        return []
    tuned = [found for found in tuning if "lr" in found.get("best", {})]
    rates = {_number_of(cell, "lr") for cell in _ended_cells(cells) if str(cell["norm"]) in learned}
    tried = sorted(filter(math.isfinite, rates))
    if tuned:
        edge = any(found.get("norm") == best and "lr" in found.get("at_edge", ()) for found in tuned)
    else:
        edge = rate in (tried[0], tried[-1])
    if not edge:
        return []
    why = "the edge of what was tried" if tuned or len(tried) > 1 else "not tuned"
    return [f"This holds at this learning rate ({rate:g}, {why})."]


def _warnings(cells: Sequence[Record]) -> list[str]:
    """What a reader has to know of trainings that did not end, norm by norm."""
    found = []
    norms = sorted({str(c["norm"]) for c in cells})
    of_norm = {norm: [c for c in cells if str(c["norm"]) == norm] for norm in norms}
    for status in ("diverged", "failed"):
        for norm, own in of_norm.items():
            if count := sum(c.get("status") == status for c in own):
                found.append(f"{norm}: {count} of {len(own)} trainings {status}")
    for norm, own in of_norm.items():
        aside = [c for c in own if c.get("status") == "paused"]
        if aside and not any(c.get("status") == "done" for c in own):
            epochs = len(aside[-1].get("epochs") or ())
            found.append(f"{norm}: set aside after {epochs} of {aside[-1].get('planned_epochs', '?')} epochs")
    return found


def edge_warnings(tuning: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every optimum at the edge of its grid, where a better one may lie beyond."""
    return [
        f"{found['norm']}: the best {axis} found, {found['best'][axis]:g}, lies at the edge of what was tried"
        for found in tuning
        for axis in found["at_edge"]
    ]


def _accuracy(cell: Record) -> float:
    """The test accuracy of a training, in [0, 1]; NaN where there is none. Raises DataError for one in percent."""
    if cell.get("status", "done") != "done":
        return math.nan
    found = _number_of(cell.get("test") or {}, "accuracy")
    if not math.isfinite(found):
        return math.nan
    if abs(found) > _PERCENT:
        raise DataError(
            f"{cell['norm']}, seed {cell.get('seed')}: the test accuracy is {found:g}; expected a share from 0 to 1, "
            "not percent"
        )
    return min(max(found, 0.0), 1.0)


def _test_figure(cell: Record, metric: Metric) -> float:
    found = metric.of(cell.get("test") or {}) if cell.get("status", "done") == "done" else math.nan
    return min(max(found, 0.0), 1.0) if math.isfinite(found) else math.nan


def _validation(cell: Record, metric: Metric) -> float:
    epochs = cell.get("epochs")
    return metric.of(kept_of(epochs, cell.get("best_epoch")), "val") if epochs else math.nan


def _number_of(record: Mapping[str, Any], name: str) -> float:
    """A recorded number; NaN for what is missing, null or text."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan


def _finite(record: Mapping[str, Any], name: str) -> float:
    """The same number, less than all others where it is none."""
    value = _number_of(record, name)
    return value if math.isfinite(value) else -math.inf


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -math.inf


def _entry(norm: str) -> NormEntry:
    """The entry of a norm's name, or an empty one for a name that this process does not have."""
    try:
        return parse(norm)[0]
    except UsageError:
        return NormEntry(norm, norm, "", "")


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def percent(value: float) -> str:
    """An accuracy in percent."""
    return f"{100 * value:.1f} %"


def _score(found: Interval) -> str:
    if found.low is None or found.high is None:
        return percent(found.mean)
    return f"{percent(found.mean)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _number(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def in_points(difference: Interval, unit: str = "") -> str:
    """A difference of accuracies in percentage points, with its interval: `−22.8 [−31.0, −15.0]`."""
    text = f"{round(100 * difference.mean, 1) + 0.0:+.1f}{unit}"  # not −0.0
    if difference.low is not None and difference.high is not None:
        text += f" [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"
    return text.replace("-", "−")


def listed(names: Sequence[str], word: str = "and") -> str:
    """Names as in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
