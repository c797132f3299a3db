"""The third and the fourth set: what they hold, and the scores that the docs print."""

from __future__ import annotations

import pytest

from benchmarks.mutants import fourth, third
from benchmarks.mutants.scored import score
from benchmarks.mutants.words import WORDS
from benchmarks.mutants.written import Wrong

WRONG: tuple[Wrong, ...] = (*third.WRONG, *fourth.WRONG)


def test_the_sets_are_as_large_as_they_say_and_every_patch_fits() -> None:
    assert (len(third.WRONG), len(third.RIGHT)) == (70, 45)
    assert (len(fourth.WRONG), len(fourth.RIGHT)) == (52, 24)
    assert sum(len(w.causes) == 2 for w in third.WRONG) >= 70 // 3
    for w in WRONG:
        assert w.source() != w.right.source()
        assert all(cause in WORDS for cause in w.causes), w.name


# one of every kind here; the whole table takes minutes
SOME = (
    "layer-precedence",
    "images-forgotten-axis",
    "two-squared-minus",
    "two-group-backward",
    "two-staged",
    "two-moved",
)


@pytest.mark.parametrize("wrong", [w for w in WRONG if w.name in SOME], ids=lambda w: w.name)
def test_every_fault_is_named_two_at_once_as_well(wrong: Wrong) -> None:
    outcome = score(wrong, others=False)
    assert outcome.killed
    assert outcome.all_named, outcome.causes
    assert not outcome.too_many


@pytest.mark.slow
def test_the_score_of_the_docs() -> None:
    outcomes = [score(w, others=False) for w in WRONG]
    assert all(o.killed for o in outcomes)
    missed = [o.layer.name for o in outcomes if not o.all_named]
    assert missed == ["two-eval-running"]
