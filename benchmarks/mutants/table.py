"""Score the kit and the other ways of testing on all mutants, and print the table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.mutants import ASPECTS, MUTANTS, ORIGINALS, Mutant
from normlab.check.engine import examine


@dataclass(frozen=True)
class Score:
    """What became of one mutant: the kit's diagnosis (None: it survived), and who else caught it."""

    mutant: Mutant
    cause: str | None
    killed: bool
    others: dict[str, bool]

    @property
    def named(self) -> bool:
        return self.cause == self.mutant.cause


def score(mutant: Mutant, others: bool = True) -> Score:
    """Run the kit on one mutant as a user would, `--as` its kind, up to the first bug; then the other ways."""
    report = examine(mutant.subject(), ORIGINALS[mutant.original][2], quick=True, first_bug=True, strict=True)
    caught = {}
    if others:
        from benchmarks.mutants.baselines import BASELINES, complaint

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, check in BASELINES.items():
                caught[name] = complaint(check, mutant.subject(), mutant.original) is not None
    return Score(mutant, report.cause, bool(report.bugs), caught)


def scores(mutants: Iterable[Mutant] = MUTANTS, told: Callable[[Score], None] = lambda s: None) -> list[Score]:
    out = []
    for m in mutants:
        out.append(score(m))
        told(out[-1])
    return out


def markdown(results: list[Score], held_out: list[Score]) -> str:
    """The table of the docs: caught mutants by kind and aspect, and those that the kit was not made with."""
    ways = list(results[0].others)
    head = ["", "mutants", "our kit", "right cause", *ways]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]

    def row(name: str, of: list[Score]) -> list[str]:
        counts = [len(of), sum(s.killed for s in of), sum(s.named for s in of)]
        return [name, *map(str, counts), *(str(sum(s.others[w] for s in of)) for w in ways)]

    for kind in dict.fromkeys(kind for _, _, kind in ORIGINALS.values()):
        rows.append(row(f"{kind} norm", [s for s in results if ORIGINALS[s.mutant.original][2] == kind]))
    for aspect in ASPECTS:
        rows.append(row(f"*{aspect}*", [s for s in results if s.mutant.aspect == aspect]))
    rows.append(row("**all**", results))
    rows.append(row("**held out**", held_out))
    return "\n".join("| " + " | ".join(r) + " |" for r in rows)
