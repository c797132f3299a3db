"""A study that stops when its question is settled: seeds go where it is open, until it is not or the time is up.

Every norm trains two seeds. After that the study is looked at after every further seed, and only the norms that may
still be the best train on; one that some other surely beats is dropped. The study is settled when one norm is left,
when no two of those that are left differ by more than matters, or when the seeds that may be trained would hardly tell
any of them from the norm to use: then they are a tie, and more trainings change nothing. The verdict's intervals hold
at every look (`normlab.study.statistics`), so that stopping at the first sure one makes it no less sure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from normlab.study.axes import Cell
from normlab.study.keeping.records import gathered
from normlab.study.keeping.store import FINISHED
from normlab.study.running.budget import duration
from normlab.study.running.driver import Study
from normlab.study.verdict import LINEAR, UNLEARNED, Verdict, judge_results

FEWEST = 2  # seeds of every norm, before anything can be said
TIE = 3  # seeds of the norms that are left, before they can be called a tie
_HOPE = 1 / 3  # a chance to distinguish them that is worth more seeds
MOST = 12  # seeds of a norm, where the study names no number


@dataclass(frozen=True)
class Progress:
    """Where a study stands after a look: the norms that are out, those that are open, and whether it is settled.

    Nothing may be open by name although nothing is settled: where no training has learned, all norms are. A `tie` is
    settled, too: more seeds would not tell the norms that are left.
    """

    out: tuple[str, ...]
    open: tuple[str, ...]
    settled: bool
    tie: bool = False

    def words(self, seeds: int, verdict: Verdict) -> str:
        """As a sentence for the person who waits."""
        said = f"after {seeds} seeds: " + (f"behind: {', '.join(self.out)}; " if self.out else "")
        if self.settled:
            why = " (a tie: more seeds would hardly tell them apart)" if self.tie else ""
            return f"{said}settled: {', '.join(verdict.best_set)}{why}"
        return f"{said}still open: {', '.join(self.open) or 'every norm, as nothing has learned'}"


def look(verdict: Verdict, most: int) -> Progress:
    """What is settled and what is open if `most` seeds may be trained: everything while nothing has learned."""
    best = [*verdict.best_set, *_may_have_learned(verdict)]
    between = [c for c in verdict.comparisons if c.a in best and c.b in best]
    same = bool(best) and all(c.same for c in between)
    hope = max((chance for seeds, chance in verdict.chances.items() if seeds <= most), default=0.0)
    tie = bool(best) and not same and verdict.seeds >= TIE and hope < _HOPE
    settled = same or tie
    return Progress(tuple(verdict.behind), () if settled else tuple(best), settled, tie)


def _may_have_learned(verdict: Verdict) -> list[str]:
    """The norms that are no better than a linear classifier on average, but whose interval reaches above it."""
    floor = verdict.floors.get(LINEAR, 1.0)
    unlearned = [norm for norm, why in verdict.avoid.items() if why.startswith(UNLEARNED)]
    return [norm for norm in unlearned if (verdict.intervals[norm].high or 0.0) > floor]


def run_until_sure(study: Study, cells: Sequence[Cell]) -> None:
    """Train the cells seed by seed as far as the question needs, or until the driver's deadline.

    `cells` are those of all seeds that may be trained; of each norm they are taken in the order of their seeds.
    """
    driver, notice = study.driver, study.driver.listener.notice
    rounds = _rounds(cells)
    least = sum(map(len, rounds[:FEWEST]))
    if least < len(cells):
        notice(
            f"until it is sure: at least {least} trainings, {FEWEST} seeds of each, and at most {len(cells)}; "
            "--seeds 1 would be one look, --budget 10m a limit"
        )
    entered: list[Cell] = []
    more = rounds[0]
    began, trained = time.monotonic(), 0
    for turn in range(1, len(rounds) + 1):
        entered += more
        ids = study.enter(entered)
        trained += sum(stored.status not in FINISHED for stored in driver.store.cells(ids))
        driver.run(ids)
        if driver.late():
            notice("the time is up")
            return
        more = rounds[turn] if turn < len(rounds) else []
        if turn >= min(FEWEST, len(rounds)):
            verdict = judge_results(gathered(driver.store))
            progress = look(verdict, len(rounds))
            notice(progress.words(turn, verdict))
            if progress.settled:
                return
            more = [cell for cell in more if not progress.open or cell.norm in progress.open]
        if trained and more:
            each = (time.monotonic() - began) / trained
            most = "" if turn >= FEWEST else f", all seeds {duration(each * (len(cells) - len(entered)))} at most"
            notice(f"another seed of these takes about {duration(each * len(more))}{most}{_time_left(driver.deadline)}")


def _time_left(deadline: float | None) -> str:
    return "" if deadline is None else f"; {duration(deadline - time.monotonic())} are left"


def _rounds(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells by seed, in the order in which the seeds first come."""
    rounds: dict[int, list[Cell]] = {}
    for cell in cells:
        rounds.setdefault(cell.seed, []).append(cell)
    return list(rounds.values())
