"""From records to one honest sentence: which norm to use, how sure that is, and what would settle the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from normlab.study.axes import GROUPING
from normlab.study.statistics import Comparison, Interval, compare_all, interval, settle

Record = Mapping[str, Any]  # a cell as in results.json


@dataclass(frozen=True)
class Verdict:
    """What a study says: the sentence, the recommended norm, and the evidence it rests on.

    `settings` is the setting at which each norm did best on the validation split; `intervals` the metric of each
    norm there and `comparisons` every pair of them; `warnings` is what a reader has to know besides.
    """

    sentence: str
    best: str | None
    metric: str
    seeds: int
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)


def judge(cells: Sequence[Record], *, baseline: str | None = None, test_images: int | None = None) -> Verdict:
    """The verdict of a study's cells.

    Each norm is taken at the setting (batch size, optimizer, learning rate ...) where its mean validation
    accuracy over the seeds is highest; the best norm is the best of these. Validation alone chooses; the
    differences are then measured on the test split, which was looked at once per cell. With `baseline` the
    sentence compares with that norm instead of with the best. `test_images` is the size of the test split.
    """
    warnings = _failures(cells)
    chosen = _best_settings(cells)
    if not chosen:
        return Verdict(_so_far(cells), None, "test accuracy", 0, warnings=warnings)
    unsettled = {norm for norm, (_, of_norm) in chosen.items() if any(c["status"] != "done" for c in of_norm)}
    eligible = {norm: (s, cs) for norm, (s, cs) in chosen.items() if norm not in unsettled} or chosen
    values = {
        norm: {c["seed"]: c["test"]["accuracy"] for c in cs if c["status"] == "done"}
        for norm, (_, cs) in chosen.items()
    }
    best = max(eligible, key=lambda norm: _validation(eligible[norm][1]))
    resolution = 1 / test_images if test_images else 0.0
    comparisons = settle(compare_all(values, resolution=resolution))
    intervals = {norm: interval(list(v.values()), resolution=resolution) for norm, v in values.items()}
    seeds = intervals[best].n
    reference = baseline if baseline in values else best
    sentence = _sentence(best, reference, intervals, comparisons, seeds)
    return Verdict(
        sentence,
        best,
        "test accuracy",
        seeds,
        {norm: setting for norm, (setting, _) in chosen.items()},
        intervals,
        comparisons,
        warnings,
    )


def _best_settings(cells: Sequence[Record]) -> dict[str, tuple[dict[str, Any], list[Record]]]:
    """For each norm, the setting of highest mean validation accuracy among those most of whose seeds are done."""
    grouped: dict[str, dict[tuple[Any, ...], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["status"] in ("done", "diverged"):
            grouped[cell["norm"]][tuple(cell.get(axis) for axis in GROUPING)].append(cell)
    result = {}
    for norm, settings in grouped.items():
        finished = {s: cs for s, cs in settings.items() if any(c["status"] == "done" for c in cs)}
        if finished:
            setting = max(finished, key=lambda s: (_share_done(finished[s]), _validation(finished[s])))
            result[norm] = (dict(zip(GROUPING, setting, strict=True)), finished[setting])
    return result


def _share_done(cells: Sequence[Record]) -> float:
    return sum(c["status"] == "done" for c in cells) / len(cells)


def _validation(cells: Sequence[Record]) -> float:
    finals = [c["epochs"][-1]["val_accuracy"] for c in cells if c["status"] == "done"]
    return sum(finals) / len(finals)


def _failures(cells: Sequence[Record]) -> list[str]:
    warnings = []
    for status, word in (("diverged", "diverged"), ("failed", "failed")):
        of_status = [c for c in cells if c["status"] == status]
        by_norm = {norm: sum(c["norm"] == norm for c in of_status) for norm in {c["norm"]: None for c in of_status}}
        warnings += [
            f"{norm}: {count} of {sum(c['norm'] == norm for c in cells)} trainings {word}"
            for norm, count in by_norm.items()
        ]
    aside = {c["norm"]: c for c in cells if c["status"] == "paused"}
    warnings += [
        f"{norm}: set aside after {len(c['epochs'])} of {c['planned_epochs']} epochs"
        for norm, c in aside.items()
        if not any(other["norm"] == norm and other["status"] == "done" for other in cells)
    ]
    return warnings


def _so_far(cells: Sequence[Record]) -> str:
    """What can be said while nothing is finished."""
    started = [c for c in cells if c["epochs"]]
    if not started:
        return "No verdict: no cell has finished."
    epoch = min(len(c["epochs"]) for c in started)
    leader = max(started, key=lambda c: c["epochs"][epoch - 1]["val_accuracy"])
    return (
        f"No verdict yet: no cell has finished. After epoch {epoch} of {leader['planned_epochs']}, "
        f"{leader['norm']} has the highest validation accuracy ({leader['epochs'][epoch - 1]['val_accuracy']:.4f}) of "
        f"{len(started)} trainings."
    )


def _sentence(
    best: str, reference: str, intervals: Mapping[str, Interval], comparisons: Sequence[Comparison], seeds: int
) -> str:
    head = f"{best} had the highest validation accuracy"
    if seeds == 1:
        return (
            f"{head} (test accuracy {intervals[best].mean:.4f}), but with one seed there is no interval: "
            "this may be luck. Run three seeds or more."
        )
    against = {
        c.b if c.a == reference else c.a: _seen_from(reference, c) for c in comparisons if reference in (c.a, c.b)
    }
    better = [n for n, c in against.items() if c.detectable and c.difference.mean > 0]
    worse = [n for n, c in against.items() if c.detectable and c.difference.mean < 0]
    same = [n for n, c in against.items() if not c.detectable]
    if not against:
        return f"{best}: test accuracy {intervals[best]} over {seeds} seeds; nothing to compare it with has finished."
    parts = [f"{best}: test accuracy {intervals[best]} over {seeds} seeds, the best by validation"]
    if reference != best:
        parts.append(f"compared with the baseline {reference}")
    if better:
        parts.append(f"{reference} is better than {_listing(better, against)}")
    if worse:
        parts.append(f"{reference} is worse than {_listing(worse, against)}")
    if same:
        parts.append(f"no detectable difference between {reference} and {', '.join(same)}{_more_seeds(same, against)}")
    return "; ".join(parts) + "."


def _seen_from(reference: str, c: Comparison) -> Comparison:
    """The same comparison with `reference` as a."""
    if c.a == reference:
        return c
    d = c.difference
    turned = Interval(-d.mean, None if d.high is None else -d.high, None if d.low is None else -d.low, d.n)
    effect = None if c.effect is None else -c.effect
    return Comparison(c.b, c.a, turned, effect, c.p, c.p_corrected, c.detectable, c.seeds_needed)


def _listing(norms: Sequence[str], against: Mapping[str, Comparison]) -> str:
    return ", ".join(f"{n} (by {abs(against[n].difference.mean):.4f})" for n in norms)


def _more_seeds(norms: Sequence[str], against: Mapping[str, Comparison]) -> str:
    needed = {n: against[n].seeds_needed for n in norms if against[n].seeds_needed}
    if not needed:
        return ""
    nearest = min(needed, key=lambda n: needed[n] or 0)
    more = (needed[nearest] or 0) - against[nearest].difference.n
    if more <= 0:
        return ""
    seeds = "seed" if more == 1 else "seeds"
    return f" (about {more} more {seeds} would settle {nearest}, if the difference is as large as it looks)"


def edge_warnings(tuning: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every optimum at the edge of its grid, where a better one may lie beyond."""
    return [
        f"{found['norm']}: the best {axis} found, {found['best'][axis]:g}, lies at the edge of what was tried"
        for found in tuning
        for axis in found["at_edge"]
    ]
