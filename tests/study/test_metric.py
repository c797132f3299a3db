"""Other metrics than accuracy: in the verdict, its words, and what is chosen by validation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from normlab.errors import UsageError
from normlab.report.records import from_results
from normlab.report.terminal import norms_table, summary
from normlab.study.metric import METRICS, metric_named
from normlab.study.training.metrics import classification_metrics
from normlab.study.verdict import judge, judge_results


def cell(norm: str, seed: int, accuracy: float, **others: float) -> dict[str, Any]:
    figures = {"loss": 1.0, "accuracy": accuracy, "macro_f1": accuracy, "balanced_accuracy": accuracy, **others}
    epoch = {"epoch": 1, **{f"val_{name}": value for name, value in figures.items()}}
    return {"norm": norm, "seed": seed, "status": "done", "epochs": [epoch], "test": figures}


# bn names more images rightly, gn the rare classes
CELLS = [
    made
    for seed in range(4)
    for made in (
        cell("bn", seed, 0.90 + seed / 1000, macro_f1=0.60 + seed / 1000, balanced_accuracy=0.55, loss=0.9),
        cell("gn", seed, 0.80 + seed / 1000, macro_f1=0.75 + seed / 1000, balanced_accuracy=0.75, loss=0.4),
    )
]


@pytest.mark.parametrize(
    ("metric", "best", "score"),
    [
        ("accuracy", "bn", "90.2 %"),
        ("macro-f1", "gn", "75.2 %"),
        ("balanced-accuracy", "gn", "75.0 %"),
        ("loss", "gn", f"{100 * math.exp(-0.4):.1f} %"),
    ],
)
def test_the_verdict_goes_by_it(metric: str, best: str, score: str) -> None:
    results = {"cells": CELLS, "environment": {"metric": metric, "floors": {"chance": 0.1}}}
    verdict = judge_results(results)
    assert verdict.best == best
    assert verdict.metric == METRICS[metric].title
    assert f"Use {best}: {score}" in verdict.sentence
    assert f"{METRICS[metric].title} over 4 seeds" in verdict.sentence
    study = from_results(results)
    table = norms_table(study)
    assert table.columns[2] == f"{METRICS[metric].title} (%)"
    assert table.rows[0][0] == best
    assert table.rows[0][2].startswith(score.split()[0])
    assert METRICS[metric].title in " ".join(summary(study).split())


def test_what_did_not_learn_is_told_by_its_accuracy() -> None:
    lost = [cell("none", seed, 0.10, macro_f1=0.9, loss=0.1) for seed in range(4)]
    verdict = judge([*CELLS, *lost], metric="macro-f1", floors={"chance": 0.1}, test_images=1000)
    assert verdict.best == "gn"
    assert verdict.failures["none"] == (4, 4)


def test_records_without_the_metric_have_no_verdict() -> None:
    older = [{**c, "test": {"accuracy": 0.9, "loss": 1.0}} for c in CELLS]
    verdict = judge(older, metric="macro-f1")
    assert verdict.best is None
    # it was "nothing learned; 0 of 8 trainings failed"
    assert "8 trainings learned, but have no test macro-F1" in verdict.sentence


# The norm was left out without a word.
def test_a_norm_without_the_metric_is_left_out_with_a_warning() -> None:
    older = [{**c, "test": {"accuracy": 0.9}} if c["norm"] == "gn" else c for c in CELLS]
    verdict = judge(older, metric="macro-f1")
    assert verdict.best == "bn"
    assert "gn: 4 trainings have no test macro-F1 in their records" in verdict.warnings


# The sentence said that there is nothing to compare with, and the norm that never learned was nowhere.
def test_a_norm_that_never_learned_is_avoided_though_the_best_fails_as_well() -> None:
    cells = [cell("bn", 0, 0.9), *(cell("bn", seed, 0.1) for seed in (1, 2, 3)), *(cell("gn", s, 0.1) for s in (0, 1))]
    verdict = judge(cells, floors={"chance": 0.1}, test_images=1000)
    assert verdict.best == "bn"
    assert verdict.avoid == {"gn": "failed to learn in 2 of 2 seeds"}


def test_a_metric_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="--metric 'f2' is not known; expected one of: accuracy, macro-f1"):
        metric_named("f2")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_balanced_accuracy(pairs: list[tuple[int, int]]) -> None:
    labels, called = (np.array(side) for side in zip(*pairs, strict=True))
    found = classification_metrics(labels, called, 4).balanced_accuracy
    # the mean recall over the classes that occur, as scikit-learn has it; it warns of others
    known = np.isin(called, labels)
    expected = np.mean([np.mean(called[labels == k] == k) for k in np.unique(labels)])
    assert found == pytest.approx(expected)
    if known.all() and len(np.unique(labels)) > 1:
        assert found == pytest.approx(balanced_accuracy_score(labels, called))
