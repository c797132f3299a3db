"""The benchmark of verdicts: the procedures are what textbooks say, the worlds are what they claim to be."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.verdicts import demo, early, ours, procedures
from benchmarks.verdicts.__main__ import main
from benchmarks.verdicts.cells import tables
from benchmarks.verdicts.measures import changes, covered, wrong
from benchmarks.verdicts.replay import steadiness, until_sure
from benchmarks.verdicts.worlds import WORLDS
from normlab.study.statistics import compare_all
from normlab.study.verdict import Verdict

EQUAL, ONE_BEST = WORLDS[0], WORLDS[1]


def test_the_old_rule_is_the_paired_t_test_corrected_by_holm():
    test = np.random.default_rng(0).normal(0.8, 0.02, (1, 3, 6))
    test[:, 0] += 0.2
    said = procedures.paired_holm(test, test)
    one, other = test[0, 0], test[0, 1]
    found = stats.ttest_rel(one, other).confidence_interval()
    assert said.chosen[0] == 0
    np.testing.assert_allclose([said.low[0, 1], said.high[0, 1]], [-found.high, -found.low], rtol=1e-6)
    assert said.behind.tolist() == [[False, True, True]]


def test_tukey_and_dunnett_agree_with_scipy():
    test = np.random.default_rng(1).normal(0.8, 0.02, (1, 4, 5))
    first = test[0].mean(1).argmax()
    found = stats.tukey_hsd(*test[0]).confidence_interval()
    said = procedures.tukey(test, test)
    np.testing.assert_allclose(said.low[0], found.low[:, first], atol=2e-4)
    control = stats.dunnett(*np.delete(test[0], first, 0), control=test[0, first], random_state=0)
    said = procedures.dunnett(test, test)
    np.testing.assert_allclose(np.delete(said.low[0], first), control.confidence_interval().low, atol=2e-3)


def test_like_variances_are_pooled_and_unlike_ones_are_not():
    rng = np.random.default_rng(2)
    like, freedom = procedures.moderated(rng.normal(0, 1, (200, 7, 3)))
    assert np.median(freedom) > 20
    unlike, freedom_of_unlike = procedures.moderated(rng.normal(0, 1, (200, 7, 3)) * np.geomspace(0.01, 1, 7)[:, None])
    assert np.median(freedom_of_unlike) < 5
    assert np.median(like.max(1) / like.min(1)) < 3 < np.median(unlike.max(1) / unlike.min(1))


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_a_world_has_the_means_it_claims(world):
    test, val = world.draw(400, np.random.default_rng(3))
    assert test.shape == val.shape == (400, 7, 12)
    assert ((test >= 0) & (test <= 1)).all()
    of_study = test.mean(2)
    uncertain = of_study.std(0) / np.sqrt(len(of_study))
    assert (np.abs(of_study.mean(0) - world.mean) < 5 * uncertain).all()


def test_a_wrong_statement_and_an_interval_that_misses_are_counted():
    low, high = np.full((1, 7), -0.02), np.full((1, 7), 0.02)
    none = np.zeros((1, 7), bool)
    said = procedures.Judgement(none, low, high, np.array([0]))
    assert covered(said, EQUAL).all()
    assert not wrong(none, EQUAL).any()
    assert not covered(said, ONE_BEST).any()  # the others are 5 points behind
    assert wrong(~none, EQUAL).all()
    assert wrong(~none, ONE_BEST).all()


def test_a_rule_that_looks_at_nothing_else_never_changes_its_mind():
    def below_half(test, val):
        behind = test.mean(2) < 0.5
        zeros = np.zeros(behind.shape)
        return procedures.Judgement(behind, zeros, zeros, test.mean(2).argmax(1))

    test, val = ONE_BEST.draw(50, np.random.default_rng(4))
    assert changes(procedures.textbook(below_half), ONE_BEST, test, val) == {"dropping": 0.0, "one more": 0.0}
    assert changes(procedures.textbook(procedures.paired_holm), ONE_BEST, test, val, seeds=5)["one more"] > 0


def test_the_tables_of_real_cells_are_whole():
    for found in tables():
        assert found.seeds >= 5
        assert found.epochs >= 4
        assert found.about["command"].startswith("normlab compare")
        assert all(found.val[norm].shape == (found.seeds, found.epochs) for norm in found.norms)


def test_every_table_is_printed(capsys):
    main(["--studies", "3", "--only", "pooled"])
    printed = capsys.readouterr().out
    assert "MCB, pooled" in printed
    assert "digits, 7 norms x 20 seeds" in printed


def test_many_studies_at_once_are_judged_as_one_by_one():
    for world, seeds in ((ONE_BEST, 3), (ONE_BEST, 5), (WORLDS[3], 4)):
        test, val = world.draw(6, np.random.default_rng(5), seeds)
        said = ours.judge(test, val, world.images)
        for accuracies, chosen, behind, low in zip(test, said.chosen, said.behind, said.low, strict=True):
            found = compare_all(
                {str(norm): list(values) for norm, values in enumerate(accuracies)},
                resolution=1 / world.images,
                images=world.images,
            )
            seen = [c.seen_from(str(chosen)).difference.negated for c in found if str(chosen) in (c.a, c.b)]
            np.testing.assert_allclose(np.delete(low, chosen), [i.low for i in seen], atol=1e-5)
            told = {c.b if c.difference.mean > 0 else c.a for c in found if c.detectable}
            assert {str(norm) for norm in np.flatnonzero(behind)} == told


def test_demos_are_counted_by_what_they_recommend():
    one = Verdict("", "bn", best_set=["bn", "gn"], avoid={"ln": "far behind"})
    other = Verdict("", "gn", best_set=["gn"], avoid={"ln": "far behind", "bn": "failed"})
    said = demo.rows([one, other, Verdict("No verdict.")])
    assert [row["use"] for row in said] == ["bn", "gn", "no verdict"]
    assert [row["seeds"] for row in said] == ["0–2", "3–5", "6–8"]
    assert said[0]["not distinguished from it"] == "gn"
    assert said[1]["avoid"] == "bn, ln"
    counted = demo.agreement([one, one, other])
    assert counted == "The recommendation is bn in 2 of 3 demos. gn: to be avoided in 0. ln: to be avoided in 3."


@pytest.mark.slow
def test_the_demo_runs(tmp_path, capsys):
    demo.main(["--studies", "1", "--epochs", "1", "--limit-train", "40", "--kept", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| 0–2 | " in printed
    assert "The recommendation is " in printed


def test_what_is_far_behind_half_way_is_set_aside_and_equals_hardly_ever():
    noise = np.random.default_rng(6).normal(0, 0.01, (200, 5, 3))
    means = np.array([0.8, 0.8, 0.5, 0.5, 0.5])
    out = early.set_aside(means[:, None] + noise, 1000)
    assert out[:, 2:].all()
    assert out[:, :2].mean() < 0.1


def test_a_replay_counts_trainings_and_those_until_the_right_set():
    (flowers,) = (table for table in tables() if table.name == "flowers")
    spent = until_sure(flowers, np.arange(flowers.seeds), flowers.seeds)
    assert 12 <= spent.trainings <= 30
    assert spent.until_right == np.inf or 12 <= spent.until_right <= spent.trainings
    assert spent.kept
    assert steadiness(flowers, np.arange(3)[None]) == {"dropping": 1.0, "reordering": 1.0}
