"""Verdicts: what is said of which evidence, and that it is said once."""

from __future__ import annotations

import json
import math
import random
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab import report
from normlab.errors import DataError
from normlab.report.lab import Study
from normlab.report.live import LiveStudy
from normlab.study.keeping.records import write_results
from normlab.study.keeping.store import Store
from normlab.study.spec import make_spec
from normlab.study.verdict import Verdict, judge, judge_results


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


def bare(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Cells with no more than a verdict needs."""
    return [
        {"norm": n, "seed": s, "status": "done", "test": {"accuracy": v}, "epochs": [{"val_accuracy": v}]}
        for n, of_norm in values.items()
        for s, v in enumerate(of_norm)
    ]


def test_a_clear_winner_is_an_action_with_its_intervals() -> None:
    verdict = judge(cells({"bn": 0.9, "none": 0.8, "in": 0.7}))
    assert (verdict.best, verdict.best_set, verdict.behind, verdict.seeds) == ("bn", ["bn"], ["none", "in"], 5)
    assert verdict.sentence.startswith("Use bn: 89.9 % [")
    assert "test accuracy over 5 seeds. Avoid none (−9.9 points [−10." in verdict.sentence
    assert str(verdict) == verdict.sentence
    found = verdict.differences["in"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.2 < found.high < 0


# The sentence on 36 norms took 24 lines of the report's first screen.
@pytest.mark.parametrize("many", [8, 9])
def test_many_norms_to_avoid_are_told_together(many: int) -> None:
    worse = {f"n{i}": 0.8 - 0.01 * i for i in range(many - 1)}
    verdict = judge(cells({"bn": 0.9, **worse, "none": 0.1}))
    assert set(verdict.avoid) == {*worse, "none"}
    if many == 8:
        assert "Avoid n0 (−9.9 points [" in verdict.sentence
    else:
        _, _, last = verdict.sentence.partition("Avoid ")
        assert last.startswith("n0, n1, n2, n3, n4, n5, n6 and n7 (9.8 to 16.8 points behind bn, each surely behind ")
        assert "; none (failed to learn in 5 of 5 seeds)." in last


# A layer norm that was 22.8 points [14.8, 30.8] behind over three seeds made "no norm is surely behind".
def test_three_seeds_name_what_is_far_behind() -> None:
    verdict = judge(
        bare(
            {
                "bn": [0.959, 0.952, 0.967],
                "gn": [0.86, 0.87, 0.85],
                "ln": [0.73, 0.72, 0.745],
                "in": [0.88, 0.9, 0.87],
                "none": [0.61, 0.58, 0.63],
            }
        )
    )
    assert {"ln", "none"} <= set(verdict.behind)
    assert verdict.best_set[0] == "bn"
    assert "none" in verdict.sentence


# At three seeds ln and none were named in a sixth of such studies: none spreads by 20 points.
def test_three_seeds_name_what_is_far_behind_however_widely_it_spreads() -> None:
    rng, named = np.random.default_rng(12), 0
    means, spreads = [0.975, 0.973, 0.97, 0.969, 0.965, 0.75, 0.6], [0.004] * 5 + [0.05, 0.2]
    for _ in range(20):
        drawn = np.clip(rng.normal(means, spreads, (3, 7)), 0, 1).T.tolist()
        verdict = judge(bare(dict(zip(("bn", "bin", "gn", "in", "torch-bn", "ln", "none"), drawn, strict=True))))
        named += verdict.behind == ["ln", "none"] or verdict.behind == ["none", "ln"]
    assert named >= 17


# A norm of one seed, which nothing is known of, was recommended because it came first.
def test_a_norm_of_one_seed_is_not_preferred_to_norms_of_several() -> None:
    verdict = judge(bare({"bn": [0.9, 0.91, 0.9], "gn": [0.89, 0.9, 0.91], "ln": [0.92]}))
    assert verdict.best == "bn"
    assert "Not yet distinguished from bn: ln (+1.7 points)" in verdict.sentence


# "Avoid x (−1.0 points [−3.0, 1.0])": it was behind another norm than the one to use.
def test_a_norm_is_avoided_for_what_it_is_behind_of() -> None:
    values = {
        "bn": [0.80, 0.88, 0.84],
        "gn": [0.849, 0.85, 0.851],
        "ln": [0.82, 0.821, 0.819],
        "in": [0.85, 0.849, 0.85],
    }
    verdict = judge(bare({norm: [*of, *of] for norm, of in values.items()}))
    for norm in verdict.behind:
        found = verdict.differences[norm]
        assert found.high is not None
        assert found.high < 0 or " against " in verdict.avoid[norm]


def test_what_does_not_matter_is_the_same_and_the_usual_and_cheaper_norm_is_preferred() -> None:
    rows = cells({"bin": 0.9, "bn": 0.9, "ln": 0.6}, noise=0.0003)
    for cell in rows:
        cell["epochs"][0]["seconds"] = {"bn": 3.0, "bin": 4.0, "ln": 3.5}[cell["norm"]]
    verdict = judge(rows)
    assert (verdict.best, verdict.best_set) == ("bn", ["bn", "bin"])
    assert verdict.sentence.startswith("Use bn or bin (no difference that matters: within 0.")
    assert "Prefer bn: cheapest, standard; " in verdict.sentence
    assert "Avoid ln (" in verdict.sentence
    assert "not distinguished" in judge(rows, matters=1e-6).sentence


def test_small_batches_prefer_what_does_not_depend_on_them() -> None:
    rows = cells({"bn": 0.9, "gn": 0.9}, noise=0.0003)
    assert judge(rows).best == "bn"
    verdict = judge([{**cell, "batch_size": 4} for cell in rows])
    assert verdict.best == "gn"
    assert "Prefer gn: it does not depend on the batch" in verdict.sentence


def test_an_open_question_is_said_with_what_would_settle_it() -> None:
    verdict = judge(
        bare({"bn": [0.93, 0.95, 0.97], "gn": [0.84, 0.9, 0.87], "in": [0.6, 0.61, 0.62], "ln": [0.5, 0.55, 0.6]})
    )
    assert "Not yet distinguished from bn: gn (−" in verdict.sentence
    assert " more seed" in verdict.sentence
    (pair,) = (c for c in verdict.comparisons if {c.a, c.b} == {"bn", "gn"})
    assert pair.seeds_needed is not None
    assert pair.seeds_needed > 3


def test_one_seed_has_no_interval_and_says_so() -> None:
    verdict = judge(cells({"bn": 0.9, "gn": 0.5}, seeds=1))
    assert "one seed has no interval" in verdict.sentence
    assert "Run three seeds or more" in verdict.sentence
    assert "[" not in verdict.sentence
    assert (verdict.behind, set(verdict.best_set)) == ([], {"bn", "gn"})


def test_validation_chooses_the_setting_and_the_test_split_measures() -> None:
    chosen = [record("bn", s, val=0.9, test=0.5, lr=0.1) for s in range(3)]
    tempting = [record("bn", s, val=0.6, test=0.99, lr=0.01) for s in range(3)]
    verdict = judge([*chosen, *tempting])
    assert verdict.settings["bn"]["lr"] == 0.1
    assert verdict.intervals["bn"].mean == 0.5


def test_a_baseline_is_compared_with_everybody() -> None:
    verdict = judge(cells({"bn": 0.9, "none": 0.8, "in": 0.7}), baseline="none")
    assert verdict.best == "bn"
    assert "Against the baseline none: bn +9.9 points [9." in verdict.sentence
    assert "; in −10." in verdict.sentence
    assert "baseline" not in judge(cells({"bn": 0.9, "none": 0.8}), baseline="bn").sentence


def test_failures_are_a_rate_of_their_own_and_no_outliers_of_the_mean() -> None:
    values = {"bn": [0.9, 0.91, 0.9], "gn": [0.9, 0.9, 0.91], "none": [0.1, 0.89, 0.1], "ln": [0.7, 0.71, 0.7]}
    for floors in ({"chance": 0.1}, None):
        verdict = judge(bare(values), floors=floors)
        assert verdict.failures["none"] == (2, 3)
        assert "none (failed to learn in 2 of 3 seeds)" in verdict.sentence
        assert verdict.avoid["none"] == "failed to learn in 2 of 3 seeds"
        assert "none" not in verdict.best_set
        assert verdict.behind == ["ln"]
        assert verdict.intervals["none"].mean == pytest.approx(0.89)


def test_a_norm_that_diverged_is_not_recommended() -> None:
    rows = cells({"bn": 0.8, "none": 0.9}, seeds=3)
    rows[1] = record("none", 0, 0.9, status="diverged", epochs=[], test=None)
    verdict = judge(rows)
    assert verdict.best == "bn"
    assert "none (failed to learn in 1 of 3 seeds)" in verdict.sentence
    assert "none: 1 of 3 trainings diverged" in verdict.warnings
    never = [record("none", s, 0, status="diverged", epochs=[], test=None) for s in range(3)]
    assert judge([*cells({"bn": 0.8}, seeds=3), *never]).behind == ["none"]


# "Avoid none (failed to learn in 1 of 3 seeds). ... about 2 more seeds would settle none"
def test_no_more_seeds_are_asked_for_a_norm_to_avoid() -> None:
    verdict = judge(bare({"bn": [0.66, 0.67, 0.665], "none": [0.64, 0.65, 0.01]}))
    assert "none" in verdict.avoid
    assert "would settle none" not in verdict.sentence
    assert all(c.seeds_needed is None for c in verdict.comparisons)


def test_failures_of_the_machine_are_warned_of() -> None:
    rows = [*cells({"bn": 0.8, "gn": 0.7}, seeds=2), record("in", 0, 0, status="failed", epochs=[], test=None)]
    assert judge(rows).warnings == ["in: 1 of 1 trainings failed"]


def test_a_floor_is_under_every_claim() -> None:
    floors = {"chance": 0.1, "largest class": 0.2, "linear classifier": 0.85}
    rows = cells({"bn": 0.9, "ln": 0.8, "none": 0.2}, seeds=3)
    verdict = judge(rows, floors=floors)
    assert verdict.avoid["ln"].startswith("−10.1 points [−10.")
    assert verdict.failures["none"] == (3, 3)
    assert verdict.floors == floors
    close = judge(bare({"bn": [0.86, 0.9, 0.88], "ln": [0.84, 0.86, 0.83]}), floors=floors)
    assert "ln has not learned (no better than a linear classifier on the pixels, 85.0 %)." in close.sentence
    below = judge(cells({"bn": 0.7, "ln": 0.6}, seeds=3), floors=floors)
    assert below.sentence.startswith("No verdict: nothing learned; bn comes first with 70.")
    assert "a linear classifier on the pixels (85.0 %)" in below.sentence
    assert below.best is None, "it named bn as the best although nothing had learned"
    assert (below.best_set, below.behind, below.avoid, below.differences) == ([], [], {}, {})
    assert below.intervals.keys() == {"bn", "ln"}
    nothing = judge(cells({"bn": 0.2, "ln": 0.19}, seeds=3), floors=floors)
    assert nothing.sentence.startswith("No verdict: nothing learned (no better than 20.0 %")
    assert "Try " in nothing.sentence
    assert nothing.best is None
    assert nothing.intervals.keys() == {"bn", "ln"}


# bn was preferred, as the more usual one, to a norm that had learned more than a linear classifier.
def test_a_norm_below_the_floor_is_not_preferred_to_one_above() -> None:
    floors = {"chance": 0.1, "linear classifier": 0.85}
    verdict = judge(bare({"bn": [0.83, 0.86, 0.855], "gn": [0.85, 0.865, 0.84]}), floors=floors)
    assert verdict.best == "gn"
    assert "bn has not learned" in verdict.sentence
    failing = {"bn": [0.8, 0.81, 0.8], "gn": [0.8, 0.81, 0.8], "none": [0.9, 0.1, 0.1]}
    unsound = judge(bare(failing), floors=floors)
    assert unsound.best is None
    assert unsound.sentence.startswith("No verdict: only none learned more than a linear classifier on the pixels")


def test_the_learning_rate_is_part_of_the_claim() -> None:
    rows = cells({"bn": 0.9, "ln": 0.5})
    assert judge(rows).sentence.endswith("This holds at this learning rate (0.1, not tuned).")
    grid = [
        {**cell, "lr": lr, "epochs": [{"val_accuracy": 0.9 - abs(lr - 0.1)}]}
        for cell in rows
        for lr in (0.01, 0.1, 0.3)
    ]
    assert "learning rate" not in judge(grid).sentence
    edge = judge([cell for cell in grid if cell["lr"] < 0.2])
    assert edge.sentence.endswith("This holds at this learning rate (0.1, the edge of what was tried).")
    tuned = [{"norm": "bn", "best": {"lr": 0.1}, "at_edge": []}]
    assert "learning rate" not in judge(rows, tuning=tuned).sentence
    assert "learning rate" not in judge(bare({"bn": [0.9] * 3, "ln": [0.5] * 3})).sentence


# The norm that looks best of equal ones was flattered by as much as chance had chosen it.
def test_the_accuracy_of_the_norm_to_use_is_corrected_for_being_chosen() -> None:
    rng, raw, corrected = np.random.default_rng(3), [], []
    for _ in range(30):
        drawn = rng.normal(0.85, 0.015, (5, 3))
        drawn = drawn[np.argsort(-drawn.mean(axis=1))]  # bn, which is preferred, is also the best by chance
        verdict = judge(bare(dict(zip(("bn", "gn", "ln", "in", "bin"), drawn.tolist(), strict=True))))
        assert verdict.best == "bn"
        assert verdict.accuracy is not None
        raw.append(verdict.intervals["bn"].mean - 0.85)
        corrected.append(verdict.accuracy.mean - 0.85)
    assert np.mean(raw) > 0.007
    assert abs(np.mean(corrected)) < 0.5 * np.mean(raw)


def test_nothing_finished_is_no_verdict() -> None:
    assert "No verdict" in judge([]).sentence
    rows = [record("bn", 0, 0.3, status="paused", test=None, planned_epochs=9)]
    verdict = judge(rows)
    assert "No verdict yet" in verdict.sentence
    assert verdict.warnings == ["bn: set aside after 1 of 9 epochs"]


def test_one_norm_alone_is_compared_with_nothing() -> None:
    assert "nothing to compare" in judge(cells({"bn": 0.9})).sentence


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_equal_values_are_judged(level: float) -> None:
    verdict = judge(bare({"bn": [level] * 3, "gn": [level] * 3, "ln": [level] * 3, "in": [level] * 2}))
    assert verdict.behind == []
    assert verdict.best == "bn"
    assert "−0.0 points" not in verdict.sentence
    for found in verdict.intervals.values():
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= level <= found.high <= 1


def test_neither_the_order_of_cells_nor_a_norm_far_behind_changes_the_recommendation() -> None:
    rng, changed = np.random.default_rng(4), 0
    for study in range(12):
        levels = zip(("bn", "bin", "gn", "ln", "none"), rng.normal([0.95, 0.95, 0.9, 0.7, 0.4], 0.01), strict=True)
        rows = bare({norm: rng.normal(level, 0.012, 3).tolist() for norm, level in levels})
        verdict = judge(rows)
        mixed = list(rows)
        random.Random(study).shuffle(mixed)
        assert judge(mixed) == verdict
        without = judge([cell for cell in rows if cell["norm"] != "none"])
        changed += without.best != verdict.best
    assert changed <= 1


_VALUES = st.one_of(st.floats(0, 1), st.just(float("nan")), st.none())
_CELLS = st.lists(
    st.builds(
        lambda norm, seed, status, value, extra: {
            "norm": norm,
            "seed": seed,
            "status": status,
            "test": None if value is None else {"accuracy": value},
            "epochs": () if value is None else ({"val_accuracy": value},),
            **extra,
        },
        st.sampled_from(["bn", "gn", "ln", "in", "mine"]),
        st.integers(0, 4),
        st.sampled_from(["done", "done", "done", "diverged", "failed", "paused", "running"]),
        _VALUES,
        st.sampled_from([{}, {"lr": 0.1}, {"lr": 0.2, "batch_size": 4}]),
    ),
    max_size=16,
)


@given(_CELLS, st.sampled_from([None, {"chance": 0.1}, {"chance": 0.1, "linear classifier": 0.4}]))
def test_whatever_the_cells_are_there_is_a_sentence_and_intervals_stay_within_bounds(
    rows: list[dict[str, Any]], floors: dict[str, float] | None
) -> None:
    verdict = judge(rows, floors=floors)
    assert verdict.sentence.endswith((".", ")"))
    assert "nan" not in verdict.sentence.replace("nano", "")
    assert "inf" not in verdict.sentence
    assert judge(rows[::-1], floors=floors).sentence == verdict.sentence
    assert not set(verdict.best_set) & (set(verdict.behind) | set(verdict.avoid))
    assert verdict.best is None or verdict.best in verdict.best_set
    for found in (*verdict.intervals.values(), *([verdict.accuracy] if verdict.accuracy else [])):
        assert found.low is None or found.high is None or 0 <= found.low <= found.high <= 1
    for found in verdict.differences.values():
        assert found.low is None or found.high is None or -1 <= found.low <= found.high <= 1
    json.dumps(verdict.as_dict())


def test_terminal_records_report_live_page_and_python_print_the_same_sentence(tmp_path: Path) -> None:
    values = {"bn": [0.95, 0.96, 0.95], "gn": [0.86, 0.87, 0.85], "ln": [0.7, 0.71, 0.73], "none": [0.1, 0.6, 0.1]}
    facts = {"class_names": list("abcdefghij"), "test_images": 300, "floors": {"chance": 0.1}, "baseline": "gn"}
    with Store(tmp_path) as store:
        spec = make_spec({"norms": ",".join(values), "epochs": 1, "seeds": 3})
        wanted = spec.cells(100)
        ids = store.begin_study({}, facts, wanted, "data")
        for cell, cell_id in zip(wanted, ids, strict=True):
            attempt = store.begin_attempt(cell_id, {})
            assert attempt is not None
            reached = values[cell.norm][cell.seed]
            epoch = {"epoch": 1, "train_loss": 0.1, "val_accuracy": reached, "seconds": 1.0, "images_per_second": 9.0}
            store.add_epoch(cell_id, epoch)
            tested = {"test": {"loss": 0.1, "accuracy": reached, "micro_f1": reached, "macro_f1": reached}}
            store.end_attempt(attempt, cell_id, "done", outcome=tested)
        recorded = write_results(store, tmp_path)["verdict"]["sentence"]
    assert recorded.startswith("Use bn: 95.3 % [")
    assert "Avoid " in recorded
    assert json.loads((tmp_path / "results.json").read_text())["verdict"]["sentence"] == recorded
    assert str(Study(tmp_path).verdict) == recorded
    assert " ".join(report.summary(tmp_path).split()).startswith(recorded)
    assert LiveStudy(tmp_path).state()["verdict"] == recorded
    assert recorded in unescape(report.write(tmp_path).read_text())
    assert recorded in report.write(tmp_path, "md").read_text().replace("\\", "")
    assert report.verdict(tmp_path) == recorded


def test_a_document_brings_what_its_environment_says() -> None:
    rows = cells({"bn": 0.9, "ln": 0.3}, seeds=3)
    facts = {"class_names": ["a", "b"], "test_images": 100, "baseline": "ln", "matters": 0.01}
    verdict = judge_results({"cells": rows, "environment": facts})
    assert verdict.floors == {"chance": 0.5}
    assert "failed to learn in 3 of 3 seeds" in verdict.sentence
    assert isinstance(judge_results({"cells": []}), Verdict)


# seeds of which some were text, and learning rates likewise, ended in a TypeError; as text, seed 10 came before seed 9
def test_numbers_that_are_written_as_text_are_taken_in_their_order() -> None:
    rows = cells({"bn": 0.9, "gn": 0.8}, seeds=11)
    as_text = [{**row, "seed": str(row["seed"]), "lr": "0.1"} for row in rows]
    assert judge(as_text).comparisons == judge(rows).comparisons
    mixed = [row if number % 3 else {**row, "seed": str(row["seed"])} for number, row in enumerate(rows)]
    assert judge(mixed) == judge(rows)
    assert judge([{**row, "seed": f"run {row['seed']}"} for row in rows]).best == "bn"
    rates = [{**row, "lr": rate} for rate in (0.1, "0.1", None) for row in rows]
    assert judge(rates).best == "bn"


# accuracies in percent were judged, and the norm to use had "9600.0 %"
@pytest.mark.parametrize("value", [96.0, 2.5, -20.0])
def test_an_accuracy_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=f"gn, seed 2: the test accuracy is {value:g}"):
        judge(bare({"bn": [0.9, 0.91, 0.92], "gn": [0.9, 0.91, value]}))


# 100.4 % were printed
def test_no_accuracy_leaves_what_an_accuracy_can_be() -> None:
    verdict = judge(bare({"bn": [1.002, 1.004, 1.006], "gn": [-0.01, 0.01, 0.02]}))
    for found in (*verdict.intervals.values(), verdict.accuracy):
        assert found is not None
        assert 0 <= found.mean <= 1


# NaN was a failure, and infinity a training without a record
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.9", True])
def test_what_is_no_accuracy_is_a_failure(value: Any) -> None:
    rows = [{**record("bn", seed, 0.9), "test": {"accuracy": value}} for seed in range(3)]
    verdict = judge([*rows, *cells({"gn": 0.8}, seeds=3)])
    assert (verdict.best, verdict.failures["bn"]) == ("gn", (3, 3))


# "gn comes first with 60.0 % [58.1, 61.9] over 3 seeds, but one seed has no interval", which was another norm's
def test_the_one_seed_of_a_norm_to_avoid_leaves_no_doubt_about_the_one_to_use() -> None:
    rows = bare({"bn": [0.1, 0.1, 0.96], "gn": [0.6, 0.61, 0.62]})
    verdict = judge(rows, floors={"chance": 0.1}, test_images=300)
    assert verdict.sentence.startswith("Use gn: 61.0 %")
    assert "luck" not in verdict.sentence
    assert "Avoid bn (failed to learn in 2 of 3 seeds)" in verdict.sentence


# "about 2 more seeds" was counted from the five of the other norm
def test_more_seeds_are_counted_from_the_norm_that_has_fewer() -> None:
    rows = bare({"bn": [0.95, 0.94, 0.955, 0.945, 0.95], "gn": [0.9, 0.91]})
    verdict = judge(rows, test_images=1000)
    needed = next(c.seeds_needed for c in verdict.comparisons if {c.a, c.b} == {"bn", "gn"})
    assert needed is not None
    assert f"about {needed - 2} more seeds would settle gn" in verdict.sentence
