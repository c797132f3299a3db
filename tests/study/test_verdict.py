"""Verdicts: what is said of which evidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.study.verdict import judge


def record(norm: str, seed: int, val: float, test: float | None = None, **changes: Any) -> dict[str, Any]:
    tested = val if test is None else test
    facts: dict[str, Any] = {
        "norm": norm,
        "seed": seed,
        "model": "resnet14",
        "batch_size": 32,
        "optimizer": "sgd",
        "lr": 0.1,
        "planned_epochs": 1,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "augment": "none",
        "status": "done",
        "epochs": [{"epoch": 1, "val_accuracy": val}],
        "test": {"accuracy": tested},
    }
    return {**facts, **changes}


def cells(levels: dict[str, float], seeds: int = 5, noise: float = 0.002) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [record(norm, seed, level + rng.normal(0, noise)) for seed in range(seeds) for norm, level in levels.items()]


def test_a_clear_winner_is_named_with_its_interval() -> None:
    verdict = judge(cells({"bn": 0.9, "none": 0.8, "in": 0.7}))
    assert verdict.best == "bn"
    assert verdict.seeds == 5
    assert "bn is better than none (by 0.099" in verdict.sentence
    assert "over 5 seeds" in verdict.sentence
    assert "no detectable difference" not in verdict.sentence


def test_no_detectable_difference_is_a_verdict_and_says_what_would_settle_it() -> None:
    verdict = judge(cells({"bn": 0.9, "gn": 0.89}, seeds=3, noise=0.01))
    assert "no detectable difference between" in verdict.sentence
    assert "more seed" in verdict.sentence


def test_one_seed_has_no_interval_and_says_so() -> None:
    verdict = judge(cells({"bn": 0.9, "gn": 0.5}, seeds=1))
    assert "one seed" in verdict.sentence
    assert "[" not in verdict.sentence


def test_validation_chooses_and_the_test_split_measures() -> None:
    chosen = [record("bn", s, val=0.9, test=0.5, lr=0.1) for s in range(3)]
    tempting = [record("bn", s, val=0.6, test=0.99, lr=0.01) for s in range(3)]
    verdict = judge([*chosen, *tempting])
    assert verdict.settings["bn"]["lr"] == 0.1
    assert verdict.intervals["bn"].mean == 0.5


def test_a_baseline_takes_the_place_of_the_best() -> None:
    verdict = judge(cells({"bn": 0.9, "none": 0.8, "in": 0.7}), baseline="none")
    assert verdict.best == "bn"
    assert "none is better than in" in verdict.sentence
    assert "none is worse than bn" in verdict.sentence


def test_a_norm_that_diverged_is_told_and_not_recommended() -> None:
    rows = cells({"bn": 0.8, "none": 0.9}, seeds=3)
    rows[1] = record("none", 0, 0.9, status="diverged", epochs=[], test=None)
    verdict = judge(rows)
    assert verdict.best == "bn"
    assert "none: 1 of 3 trainings diverged" in verdict.warnings


def test_failures_are_told() -> None:
    rows = [*cells({"bn": 0.8, "gn": 0.7}, seeds=2), record("in", 0, 0, status="failed", epochs=[], test=None)]
    assert judge(rows).warnings == ["in: 1 of 1 trainings failed"]


def test_nothing_finished_is_no_verdict() -> None:
    assert "No verdict" in judge([]).sentence
    rows = [record("bn", 0, 0.3, status="paused", test=None, planned_epochs=9)]
    verdict = judge(rows)
    assert "No verdict yet" in verdict.sentence
    assert verdict.warnings == ["bn: set aside after 1 of 9 epochs"]


def test_one_norm_alone_is_compared_with_nothing() -> None:
    assert "nothing to compare" in judge(cells({"bn": 0.9})).sentence
