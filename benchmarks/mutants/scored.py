"""Score the kit and the other ways of testing on the third and the fourth set: wrong layers and right ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.mutants.plain_tests import WAYS, complaint
from benchmarks.mutants.words import named, too_many
from benchmarks.mutants.written import Right, Wrong
from normlab.check.dialect import Setup, prepare
from normlab.check.engine import examine


@dataclass(frozen=True)
class Outcome:
    """What became of one layer: whether its mathematics was called wrong, the diagnoses, and who else complained."""

    layer: Right | Wrong
    killed: bool
    causes: list[str]
    others: dict[str, bool]

    @property
    def all_named(self) -> bool:
        return isinstance(self.layer, Wrong) and named(self.layer.causes, self.causes)

    @property
    def too_many(self) -> list[str]:
        return too_many(self.layer.causes, self.causes) if isinstance(self.layer, Wrong) else self.causes


def score(layer: Right | Wrong, others: bool = True) -> Outcome:
    """Run the kit on one layer as a user would, then the other ways."""
    right = layer.right if isinstance(layer, Wrong) else layer
    report = examine(layer.subject(), right.kind, quick=True)
    bugs = [f for f in report.of_part("mathematics") if f.status == "bug"]
    causes = list(dict.fromkeys(c for f in bugs for c in (f.cause or "").split(" + ") if c))
    caught = {}
    if others:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            setup = prepare(right.subject(), right.kind)
            caught = {name: complaint(way, _in_place(setup, layer)) is not None for name, way in WAYS.items()}
    return Outcome(layer, bool(bugs), causes, caught)


def _in_place(setup: Setup, layer: Right | Wrong) -> Setup:
    """The layer, with the recipe, the shapes and the habits that were found of the right one."""
    subject = layer.subject()
    subject.channel_axis, subject.habits = setup.subject.channel_axis, setup.subject.habits
    return replace(setup, subject=subject)


def markdown(sets: dict[str, tuple[Sequence[Outcome], Sequence[Outcome]]]) -> str:
    """The table of the docs: for each set its wrong layers, then its right ones."""
    head = ["", "layers", "our kit", "all causes named", "a name too many", *WAYS]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]

    def row(name: str, of: Sequence[Outcome], counts: list[object]) -> list[str]:
        return [name, *map(str, counts), *(str(sum(o.others[w] for o in of)) for w in WAYS)]

    for name, (wrong, right) in sets.items():
        for title, some in (("one fault", 1), ("two faults", 2)):
            of = [o for o in wrong if isinstance(o.layer, Wrong) and len(o.layer.causes) == some]
            rows.append(row(f"{name} set, {title}: complaints", of, _counts(of)))
        rows.append(row(f"**{name} set, wrong: complaints**", wrong, _counts(wrong)))
        rows.append(
            row(f"**{name} set, right: complaints**", right, [len(right), sum(o.killed for o in right), "", ""])
        )
    return "\n".join("| " + " | ".join(r) + " |" for r in rows)


def _counts(of: Sequence[Outcome]) -> list[object]:
    return [len(of), sum(o.killed for o in of), sum(o.all_named for o in of), sum(bool(o.too_many) for o in of)]


def scored(told: Callable[[Outcome], None] = lambda o: None) -> dict[str, tuple[list[Outcome], list[Outcome]]]:
    """Both sets, scored."""
    from benchmarks.mutants import fourth, third

    found = {}
    for name, of in (("third", third), ("fourth", fourth)):
        outcomes = tuple([_told(score(layer), told) for layer in layers] for layers in (of.WRONG, of.RIGHT))
        found[name] = outcomes
    return found  # type: ignore[return-value]


def _told(outcome: Outcome, told: Callable[[Outcome], None]) -> Outcome:
    told(outcome)
    return outcome
