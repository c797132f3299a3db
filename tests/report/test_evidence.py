from __future__ import annotations

import copy

from normlab.report import sections, terminal, verdict
from normlab.report.evidence import accuracies, contenders, estimate, warnings
from normlab.report.figures.parts import plus_minus
from normlab.report.records import from_results
from tests.report.studies import results


def test_one_seed_has_no_interval_and_says_so() -> None:
    study = from_results(results(seeds=1))
    assert "one seed has no interval" in study.judged.sentence
    assert "±" not in terminal.summary(study)
    assert any("single seed" in warning for warning in warnings(study))


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
    assert study.judged.sentence in said.replace("\n", " ")
    rows = {line.split()[0]: line.split() for line in said.split("\n\n")[1].splitlines()}
    assert rows["bn"][1:5] == ["3", *plus_minus(accuracies(study, contenders(study))["bn"]).split()]
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
        cell["test"]["accuracy"] = cell["epochs"][-1]["val_accuracy"] = 0.6
    study = from_results(document)
    table = sections.main_table(study, contenders(study))
    assert table.columns[2] == "test accuracy"
    shown = table.rows[0][2]
    assert shown != "60.0 ± 0.0"
    assert terminal.summary(study).count(shown) >= 2
