"""From a wrong result to its cause: which wrong formula predicts what the layer returned?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from normlab.check import slips
from normlab.check.oracle import Array, Case, updated_running
from normlab.check.slips import ForwardSlip, GradientSlip, StateSlip, Update


@dataclass(frozen=True)
class Observation:
    """What the layer returned for a case, beside the right one; `dy` for gradients."""

    case: Case
    got: NDArray[Any]
    right: Array
    dy: Array | None = None


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference in units of 1 + the expected size; infinite where one is finite and the other is not."""
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.size == 0:
        return 0.0
    with np.errstate(all="ignore"):
        difference = np.abs(got - expected) / (1 + np.abs(expected))
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return float(np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference)).max())


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference relative to the largest expected value: for gradients, whose scale is free."""
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return error(np.asarray(got, dtype=np.float64) / scale, np.asarray(expected, dtype=np.float64) / scale)


S = TypeVar("S", ForwardSlip, GradientSlip, StateSlip)


def _pairs(candidates: Sequence[S]) -> Iterator[S]:
    """Every two slips that can be made at once."""
    for first, second in combinations(candidates, 2):
        both = first.together(second)
        if both is not None:
            yield both


def _best(candidates: Iterable[S], misfit: Callable[[S, float], float], limit: float) -> S | None:
    """The candidate of the smallest misfit, the earlier one where two are alike; None above the limit.

    A misfit is handed the largest value that can still win, so that it may stop there.
    """
    best, least = None, np.inf
    with np.errstate(all="ignore"):
        for slip in candidates:
            try:
                found = misfit(slip, min(least / 3, limit))
            except (ValueError, LookupError):  # the slip makes no sense for this shape
                continue
            if found < least / 3:
                best, least = slip, found
    return best if least < limit else None


def _find(
    singles: Sequence[S], misfit: Callable[[S, float], float], tolerance: float, wrong: float, pairs: bool = True
) -> S | None:
    """One slip that explains what was seen, or two at once, of which closer agreement is demanded."""
    one = _best(singles, misfit, max(30 * tolerance, 0.01 * min(wrong, 1.0)))
    if one is not None and misfit(one, np.inf) < max(30 * tolerance, 1e-4 * min(wrong, 1.0)):
        return one
    if not pairs:
        return one
    two = _best(_pairs(singles), misfit, max(30 * tolerance, 1e-4 * min(wrong, 1.0)))
    return two or one


def _misfit_by(
    seen: Sequence[Observation], measure: Callable[[NDArray[Any], NDArray[Any]], float]
) -> Callable[[ForwardSlip | GradientSlip, float], float]:
    def of(slip: ForwardSlip | GradientSlip, enough: float) -> float:
        worst = 0.0
        for o in seen:
            worst = max(worst, measure(o.got, slip.predict(o.case, o.dy)))
            if not worst <= enough:
                return np.inf
        return worst

    return of


def _candidates(library: Iterable[S], seen: Sequence[Observation]) -> list[S]:
    """The slips that can be made in this kind of norm and mode."""
    evaluation = all(o.case.uses_running for o in seen)
    kind = seen[0].case.recipe.kind
    return [s for s in library if kind in s.kinds and (evaluation or not getattr(s, "only_running", False))]


def explain_output(
    seen: Sequence[Observation], tolerance: float, measured: Sequence[ForwardSlip] = (), pairs: bool = True
) -> ForwardSlip | None:
    """The wrong formula, or the two, that predict every output; `measured` are further candidates."""
    wrong = max((error(o.got, o.right) for o in seen), default=0.0)
    candidates = _candidates((*slips.FORWARD, *measured), seen)
    return _find(candidates, _misfit_by(_hardest_first(seen, error), error), tolerance, wrong, pairs)


def explain_gradient(of: str, seen: Sequence[Observation], tolerance: float) -> GradientSlip | None:
    """The wrong formula, or the two, that predict every gradient."""
    wrong = max((relative_error(o.got, o.right) for o in seen), default=0.0)
    candidates = _candidates([s for s in slips.GRADIENT if s.of == of], seen)
    return _find(candidates, _misfit_by(_hardest_first(seen, relative_error), relative_error), tolerance, wrong)


def _hardest_first(
    seen: Sequence[Observation], measure: Callable[[NDArray[Any], NDArray[Any]], float]
) -> Sequence[Observation]:
    """What is most wrong first: most candidates fail there, and need not be compared with the rest."""
    return sorted(seen, key=lambda o: -measure(o.got, o.right))


def explain_running(cases: Sequence[Case], after: Sequence[tuple[Array, Array]], tolerance: float) -> StateSlip | None:
    """The wrong update, or the two, that predict the running statistics after one step of every case."""
    right = [updated_running(c) for c in cases]
    off = [max(error(a[i], r[i]) for a, r in zip(after, right, strict=True)) for i in (0, 1)]
    updates = [Update.of(c) for c in cases]

    def misfit(slip: StateSlip, enough: float) -> float:
        worst = 0.0
        for u, (mean, var) in zip(updates, after, strict=True):
            worst = max(worst, error(mean, slip.predict_mean(u)), error(var, slip.predict_var(u)))
            if not worst <= enough:
                return np.inf
        return worst

    wanted = (off[0] > tolerance, off[1] > tolerance)
    singles = [s for s in slips.STATE if (wanted[0] or not s.of_mean) and (wanted[1] or not s.of_var)]
    found = _find(singles, misfit, tolerance, max(off))
    if found is not None or not all(wanted):
        return found

    def of_mean(slip: StateSlip, enough: float) -> float:
        return max(error(mean, slip.predict_mean(u)) for u, (mean, _) in zip(updates, after, strict=True))

    # the mean's slip alone may still explain it
    return _best([s for s in singles if s.of_mean], of_mean, 30 * tolerance)
