from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy import stats

from normlab.report import sections, terminal, verdict
from normlab.report.evidence import contenders, estimate, warnings
from normlab.report.evidence import verdict as judged
from normlab.report.figures.parts import plus_minus
from normlab.report.records import from_results
from tests.report.studies import results


def test_interval_is_students() -> None:
    values = [0.81, 0.84, 0.80, 0.86]
    ours = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (ours.mean, ours.low, ours.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval_and_says_so() -> None:
    study = from_results(results(seeds=1))
    answer = str(judged(study))
    assert "One seed: no interval" in answer
    assert "±" not in answer
    assert "Use " not in answer
    assert any("single seed" in warning for warning in warnings(study))


def test_clear_winner_is_recommended_with_interval_and_seeds() -> None:
    answer = judged(from_results(results(norms=["bn", "gn"], noise=0.0005)))
    assert answer.best == "bn"
    assert answer.headline.startswith("Use bn: ")
    assert "over 3 seeds" in answer.headline
    assert "above gn" in answer.headline


def test_a_baseline_is_compared_with_everybody() -> None:
    document = results(norms=["bn", "torch-bn", "gn"], noise=0.0005)
    document["environment"]["baseline"] = "gn"
    details = " ".join(judged(from_results(document)).details)
    assert "Against the baseline gn: " in details
    assert details.count("points") >= 2
    assert "ahead" in details
    document["environment"]["baseline"] = judged(from_results(document)).best
    assert "baseline" not in str(judged(from_results(document)))


def test_equal_norms_get_no_recommendation_over_each_other() -> None:
    answer = judged(from_results(results(norms=["bn", "torch-bn"], noise=0.01)))
    assert answer.headline.startswith("No detectable difference")


def test_chosen_on_validation_judged_on_test() -> None:
    document = results(norms=["bn", "gn"], noise=0.0005)
    for cell in document["cells"]:  # gn wins validation, bn the test split
        cell["epochs"][-1]["val_accuracy"] = 0.9 if cell["norm"] == "gn" else 0.5
    answer = judged(from_results(document))
    assert answer.best == "gn"
    assert answer.headline.startswith("gn did best on validation")
    assert "on the test split bn (by" in answer.headline
    assert answer.headline.endswith("is measurably ahead of it.")
    assert not any(lead.detectable and lead.difference.mean > 0 for lead in answer.leads)


def test_family_of_equal_norms_is_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        document = results(norms=["a", "b", "c", "d"], seeds=4, epochs=1)
        for cell in document["cells"]:
            cell["test"]["accuracy"] = 0.8 + rng.normal(0, 0.01)
            cell["epochs"][0]["val_accuracy"] = 0.8 + rng.normal(0, 0.01)
        wrong += any(lead.detectable for lead in judged(from_results(document)).leads)
    assert wrong <= 0.05 * 200


def test_failed_and_diverged_cells_are_warned_of_and_left_out() -> None:
    document = results()
    broken = copy.deepcopy(document)
    broken["cells"][0] |= {"status": "diverged", "test": {}}
    broken["cells"][4] |= {"status": "failed", "reason": "out of memory at batch size 128", "test": {}}
    found = "\n".join(warnings(from_results(broken)))
    assert "diverged: bn (seed 0, epoch 12)" in found
    assert "out of memory at batch size 128" in found
    assert not warnings(from_results(document))


def test_best_rate_at_the_edge_is_warned_of() -> None:
    at_edge = warnings(from_results(results(lrs=[0.01, 0.1])))
    assert any("largest learning rate tried (0.1)" in warning for warning in at_edge)
    inside = warnings(from_results(results(lrs=[0.01, 0.1, 1.0])))
    assert not any("learning rate" in warning for warning in inside)


def test_nothing_finished() -> None:
    document = results(norms=["bn"], seeds=1)
    document["cells"][0] |= {"status": "failed", "reason": "x", "test": {}}
    assert "no cell has finished" in verdict(document)


def test_an_unfinished_study_says_so() -> None:
    document = results(norms=["bn", "gn"], epochs=2)
    document["cells"][0] |= {"status": "running", "test": None}
    document["cells"][1] |= {"status": "pending", "test": None, "epochs": []}
    found = warnings(from_results(document))
    assert found[0] == "2 of 6 cells are not finished; what is said here may change."
    assert "bn was trained with a single seed" in found[1]


def test_a_lead_that_only_the_correction_withholds_is_told() -> None:
    document = results(norms=["bn", "gn", "in", "ln", "none"], seeds=3, epochs=1)
    for cell in document["cells"]:
        best = cell["norm"] == "bn"
        value = (0.9 if best else 0.7) + 0.02 * cell["seed"] * (1 if best else -1)
        cell["test"]["accuracy"] = cell["epochs"][0]["val_accuracy"] = value
    answer = judged(from_results(document))
    assert answer.headline.startswith("No detectable difference")
    assert "no norm is surely behind" in answer.headline
    assert "Taken alone" in answer.details[0]
    assert "cannot rule out chance" in answer.details[0]


def test_an_interval_wider_than_all_there_is() -> None:
    assert plus_minus(estimate([0.1, 0.7])) == "40.0 ± >100"
    assert plus_minus(estimate([0.69, 0.7])) == "69.5 ± 6.4"
    assert plus_minus(estimate([100.0, 700.0]), 1, 0) == "400 ± 3812"


def test_the_summary_for_a_terminal() -> None:
    document = results(norms=["bn", "gn", "none"], lrs=[0.01, 0.1])
    for cell in document["cells"]:
        if cell["norm"] == "none":
            cell |= {"status": "diverged", "test": {}}
    study = from_results(document)
    said = terminal.summary(study)
    assert str(judged(study)) in said.replace("\n", " ")
    rows = {line.split()[0]: line.split() for line in said.split("\n\n")[1].splitlines()}
    scores = [c["test"]["accuracy"] for c in document["cells"] if c["norm"] == "bn" and c["lr"] == 0.1]
    assert rows["bn"][1:5] == ["3", *plus_minus(estimate(scores)).split()]
    assert rows["bn"][-2:] == ["lr", "0.1"]
    assert rows["none"] == ["none", "0", "–", "–", "–", "–"]
    assert "warning: 6 of 18 cells diverged" in said


def test_tuning_warns_of_its_own_edges() -> None:
    document = results(lrs=[0.01, 0.1])
    document["tuning"] = [{"norm": "bn", "best": {"lr": 1.0}, "at_edge": ["lr"]}]
    found = warnings(from_results(document))
    assert any("bn: the best lr found, 1, lies at the edge" in warning for warning in found)
    assert not any("largest learning rate tried" in warning for warning in found)


def test_equal_scores_are_no_surer_in_the_table_than_in_the_verdict() -> None:
    document = results(norms=["bn", "gn"], seeds=2, epochs=1)
    document["environment"]["test_images"] = 40
    for cell in document["cells"]:
        cell["test"]["accuracy"] = 0.1
    study = from_results(document)
    table = sections.main_table(study, contenders(study))
    assert table.columns[2] == "test accuracy"
    shown = table.rows[0][2]
    assert shown != "10.0 ± 0.0"
    assert f"{shown} %" in str(judged(study))
    assert terminal.summary(study).count(shown) >= 2
