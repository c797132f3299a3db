"""From a wrong answer to its cause: which wrong formula predicts what the layer returned?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from normlab.check import slips
from normlab.check.oracle import Array, Case
from normlab.check.slips import Slip, StateSlip, Update


@dataclass(frozen=True)
class Observation:
    """What the layer returned for a case, beside the right answer; `dy` for gradients."""

    case: Case
    got: NDArray
    right: Array
    dy: Array | None = None


def error(got: NDArray, expected: NDArray) -> float:
    """Largest difference in units of 1 + the expected size; infinite where one is finite and the other is not."""
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.size == 0:
        return 0.0
    with np.errstate(all="ignore"):
        difference = np.abs(got - expected) / (1 + np.abs(expected))
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return float(np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference)).max())


def relative_error(got: NDArray, expected: NDArray) -> float:
    """Largest difference relative to the largest expected value: for gradients, whose scale is free."""
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return error(np.asarray(got, dtype=np.float64) / scale, np.asarray(expected, dtype=np.float64) / scale)


def explain(
    candidates: Sequence[Slip],
    seen: Sequence[Observation],
    tolerance: float,
    measure: Callable[[NDArray, NDArray], float] = error,
) -> Slip | None:
    """The candidate that predicts every observation, the failing ones to the rounding; None where none does."""
    best, best_misfit = None, np.inf
    wrong = max((measure(o.got, o.right) for o in seen), default=0.0)
    for slip in candidates:
        if seen[0].case.recipe.kind not in slip.kinds:
            continue
        if getattr(slip, "only_running", False) and not all(o.case.uses_running for o in seen):
            continue
        with np.errstate(all="ignore"):
            try:
                misfit = max(measure(o.got, slip.predict(o.case, o.dy)) for o in seen)
            except (ValueError, IndexError):  # the slip makes no sense for this shape
                continue
        if misfit < best_misfit / 3:
            best, best_misfit = slip, misfit
    return best if best_misfit < max(30 * tolerance, 0.01 * min(wrong, 1.0)) else None


def explain_output(seen: Sequence[Observation], tolerance: float) -> Slip | None:
    return explain(slips.FORWARD, seen, tolerance)


def explain_gradient(of: str, seen: Sequence[Observation], tolerance: float) -> Slip | None:
    return explain([s for s in slips.GRADIENT if s.of == of], seen, tolerance, relative_error)


def explain_running(cases: Sequence[Case], after: Sequence[tuple[Array, Array]], tolerance: float) -> StateSlip | None:
    """The wrong update that predicts the running statistics after one step of every case."""
    from normlab.check.oracle import updated_running

    right = [updated_running(c) for c in cases]
    off = [max(error(a[i], r[i]) for a, r in zip(after, right, strict=True)) for i in (0, 1)]
    wrong_of = {(True, True): "both", (True, False): "mean", (False, True): "var"}.get(
        (off[0] > tolerance, off[1] > tolerance)
    )
    best, best_misfit = None, np.inf
    for slip in slips.STATE:
        misfit = 0.0
        for case, (mean, var) in zip(cases, after, strict=True):
            u = Update.of(case)
            with np.errstate(all="ignore"):
                if slip.mean is not None:
                    misfit = max(misfit, error(mean, slip.mean(u)))
                elif wrong_of in ("mean", "both"):
                    misfit = np.inf
                if slip.var is not None:
                    misfit = max(misfit, error(var, slip.var(u)))
                elif wrong_of in ("var", "both"):
                    misfit = np.inf
        if misfit < best_misfit / 3:
            best, best_misfit = slip, misfit
    if best_misfit < max(30 * tolerance, 1e-3 * max(off)):
        return best
    for slip in slips.STATE:  # two mistakes at once: the mean's alone may still tell
        if slip.mean is not None and off[0] > tolerance:
            predicted = [slip.mean(Update.of(c)) for c in cases]
            if max(error(mean, p) for (mean, _), p in zip(after, predicted, strict=True)) < 30 * tolerance:
                return slip
    return None


def bare(case: Case) -> Case:
    """The same case without weight and bias."""
    return replace(case, weight=None, bias=None)
