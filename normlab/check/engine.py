"""Run the checks on one subject, in this process, and gather the report."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from normlab.check.dialect import Setup, prepare
from normlab.check.probe import CHECKS
from normlab.check.process import SideEffects
from normlab.check.report import FAULT_OF_THE_CHECK, GROUPS, Finding, Report, part_of
from normlab.check.subjects import Subject, TargetFailure, Unsupported
from normlab.errors import UsageError

Told = Callable[[str], None]


def examine(
    subject: Subject,
    kind: str | None = None,
    dialect: str = "auto",
    quick: bool = False,
    only: Iterable[str] | None = None,
    first_bug: bool = False,
    elements: int | None = None,
    strict: bool = False,
    starting: Told = lambda name: None,
    found: Callable[[Finding], None] = lambda finding: None,
    effects: SideEffects | None = None,
    elsewhere: Callable[[str], Finding] | None = None,
    report: Report | None = None,
) -> Report:
    """Probe the subject's dialect, then run every check.

    `only` names groups or checks; `first_bug` ends at the first bug; `elements` asks for one huge input; `strict`
    demands engineering and numerics too, and of functions and NumPy layers as well as of modules; `starting` is
    called with each check's name before it runs, `found` with each finding after; `effects` are what the target's
    import changed of the process; `elsewhere` runs the checks that are not of the mathematics, where the target is in
    another process; `report` is one to go on with, which keeps what was found where the checks do not end.
    """
    from normlab.check import checks  # noqa: F401  (importing enrols the checks)

    began, effects = time.perf_counter(), effects or SideEffects()
    report = report or Report(subject.name, strict=strict)
    report.form = subject.form
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        starting("target.probe")
        with effects.watched():
            setup = _probe(report, subject, kind, dialect, quick)
        for finding in report.findings:
            found(finding)
        if setup is not None:
            setup.elements, setup.strict = elements, strict
            report.form = setup.subject.form
            for name, (_, slow) in sorted(CHECKS.items(), key=_order):
                if (slow and quick) or (only is not None and not _is_chosen(name, only)):
                    continue
                starting(name)
                spoiled = _failed_basis(name, report)
                if spoiled:
                    finding = Finding(name, "skip", f"{spoiled} is wrong already")
                elif elsewhere is not None and part_of(name) != "mathematics":
                    finding = guarded(name, elsewhere, name)
                else:
                    with effects.watched():
                        finding = guarded_check(name, setup)
                report.findings.append(_demote_unasked(finding, setup))
                found(report.findings[-1])
                if first_bug and report.bugs:
                    break
        said = effects.finding()
        if said is not None:
            report.findings.append(said if setup is None else _demote_unasked(said, setup))
            found(report.findings[-1])
    report.seconds = time.perf_counter() - began
    return report


# layers of a framework, which people copy, save, move and compile
FORMS_THAT_PROMISE = ("torch Module", "Keras layer", "Flax layer")

# what a check builds on: where that is wrong, its own finding would only repeat it
BUILDS_ON = {
    "values.eps": ("values.train", "values.eval"),
    "values.affine": ("values.train",),
    "values.momentum": ("values.running",),
    "values.first-batch": ("values.running",),
    "values.cumulative": ("values.train", "values.running"),
    "values.tracking": ("values.train", "values.eval"),
    "layouts.long": ("values.train",),
    "numerics.overflow": ("values.train", "numerics.surface"),
    "gradients.numerical": ("gradients.train", "values.train"),
    "numerics.running": ("values.running",),
    "numerics.gradient": ("gradients.train",),
    "numerics": ("values.train",),
}


# with such a fault, the layer is held to settings that it does not have, or is never in the state that it is put into
UNDERMINES = {
    "eps-and-momentum-swapped": ("values", "gradients", "state", "layouts"),
    "updates-in-eval": ("gradients.eval", "gradients.numerical", "values.eps", "state.eval-leaves-state"),
}


def _failed_basis(name: str, report: Report) -> str | None:
    """The check, already failed, that this one builds on."""
    for found in report.bugs:
        if part_of(name) == "mathematics" and _is_chosen(name, UNDERMINES.get(found.cause or "", ())):
            return found.check
    failed = {f.check for f in report.bugs}
    roots = (*BUILDS_ON.get(name, ()), *BUILDS_ON.get(name.split(".")[0], ()))
    return next((r for r in roots if r in failed), None)


def _order(item: tuple[str, Any]) -> int:
    """From the simplest to the most remote; within a group, as written."""
    return GROUPS.index(item[0].split(".")[0])


def _is_chosen(name: str, only: Iterable[str]) -> bool:
    return any(name == o or name.startswith(o + ".") for o in only)


def _demote_unasked(finding: Finding, setup: Setup) -> Finding:
    """A course's function or NumPy layer is asked for its mathematics alone: other faults are notes."""
    promises = setup.strict or setup.subject.form in FORMS_THAT_PROMISE
    if finding.status == "bug" and finding.part != "mathematics" and not promises:
        finding.status = "note"
    return finding


def _probe(report: Report, subject: Subject, kind: str | None, dialect: str, quick: bool) -> Setup | None:
    try:
        setup = prepare(subject, kind, dialect, quick)
    except UsageError:
        raise
    except (TargetFailure, Unsupported) as e:
        report.findings.append(failure("target.probe", e))
        return None
    except Exception as e:
        report.findings.append(fault_of_the_check("target.probe", e))
        return None
    report.dialect = setup.described
    return setup


def guarded_check(name: str, setup: Setup) -> Finding:
    """One check's finding; what the layer raises, and an error of ours, are findings too."""
    return guarded(name, CHECKS[name][0], setup)


def guarded(name: str, look: Callable[[Any], Finding], at: Any) -> Finding:
    """What a look at something finds; what the layer raises, and an error of ours, are findings too."""
    try:
        finding = look(at)
    except TargetFailure as e:
        return failure(name, e)
    except Unsupported as e:
        return Finding(name, "skip", str(e))
    except UsageError:
        raise
    except Exception as e:
        return fault_of_the_check(name, e)
    finding.check = name
    return finding


def fault_of_the_check(name: str, e: Exception) -> Finding:
    """The finding for an error of ours: nothing is said of the layer."""
    line = traceback.extract_tb(e.__traceback__)[-1]
    where = f"{Path(line.filename).name}, line {line.lineno}"
    said = (str(e).splitlines() or ["(no message)"])[0]
    return Finding(
        name, "skip", f"this is a fault of the check, not of the layer: {type(e).__name__}: {said} ({where})",
        FAULT_OF_THE_CHECK,
    )  # fmt: skip


def failure(name: str, e: Exception) -> Finding:
    """The finding for a layer that raised, or returned something that is not an output."""
    original = getattr(e, "original", None)
    cause = f"raises-{type(original).__name__}" if original is not None else "bad-answer"
    measured: dict[str, Any] = {}
    return Finding(name, "bug", f"the layer {e}", cause, measured=measured)
