"""Statistics against SciPy, and against what they promise: simulated studies by the hundred."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.verdicts.ours import told_apart
from normlab.study.statistics import chances, compare_all, interval, mean_intervals, seeds_needed, spent

shares = st.floats(0, 1, allow_nan=False)


def study(
    rng: np.random.Generator, seeds: int, means: Sequence[float], spreads: Sequence[float]
) -> dict[str, list[float]]:
    """Accuracies of norms a, b, c ... with these means and standard deviations."""
    drawn = np.clip(rng.normal(np.array(means)[:, None], np.array(spreads)[:, None], (len(means), seeds)), 0, 1)
    return {chr(ord("a") + i): row.tolist() for i, row in enumerate(drawn)}


def test_the_interval_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).normal(0.9, 0.02, 7)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    found = interval([*x.tolist(), math.nan])
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mean, found.n) == (pytest.approx(x.mean()), 7)
    assert found.half_width == pytest.approx((expected[1] - expected[0]) / 2)


def test_one_seed_has_no_interval() -> None:
    found = interval([0.9])
    assert (found.mean, found.low, found.high, found.n) == (0.9, None, None, 1)
    assert math.isnan(found.half_width)
    assert math.isnan(interval([]).mean)
    (pair,) = compare_all({"a": [0.9], "b": [0.1, 0.1, 0.1]})
    assert (pair.difference.low, pair.error, pair.detectable, pair.same) == (None, None, False, False)


def test_two_norms_of_many_seeds_looked_at_once_are_compared_as_welch_does() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.6, 0.03, 60), rng.normal(0.55, 0.02, 40)
    (pair,) = compare_all({"a": a.tolist(), "b": b.tolist()}, looks=False)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (pair.difference.low, pair.difference.high) == pytest.approx((expected.low, expected.high), abs=1e-3)
    turned = pair.seen_from("b")
    assert turned.difference.low is not None
    assert (turned.a, turned.difference.low) == ("b", pytest.approx(-(pair.difference.high or 0)))


# On the scale of accuracies a norm that spread by 20 points was not distinguished from one that is 37 points better.
def test_a_norm_may_be_far_behind_however_wide_it_is() -> None:
    values = {"a": [0.97, 0.975, 0.98], "b": [0.97, 0.972, 0.971], "c": [0.55, 0.8, 0.4], "d": [0.75, 0.7, 0.8]}
    told = {(c.a, c.b) for c in compare_all(values) if c.detectable}
    assert {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")} <= told
    assert ("a", "b") not in told


# Seeds do not average out the luck of a norm with the test images: 269 of them made 11 % of equal studies differ.
def test_few_test_images_widen_a_claim_about_all_images() -> None:
    values = {"a": [0.9 + 0.001 * i for i in range(12)], "b": [0.88 + 0.001 * i for i in range(12)]}
    widths = []
    for images in (100, 10_000, None):
        (pair,) = compare_all(values, images=images)
        widths.append(pair.difference.half_width)
    assert widths[0] > 1.5 * widths[1] > 1.5 * widths[2]


def test_equal_values_of_a_few_seeds_prove_no_certainty() -> None:
    found = interval([0.9, 0.9, 0.9], resolution=1 / 100)
    assert found.half_width > 0.001
    (close,) = compare_all({"a": [0.9, 0.9], "b": [0.91, 0.91]}, resolution=1 / 100)
    assert not close.detectable


def test_norms_that_differ_by_less_than_matters_are_the_same_and_not_undetected() -> None:
    near = {"a": [0.9, 0.901, 0.9, 0.899, 0.9], "b": [0.9, 0.9, 0.901, 0.9, 0.899]}
    assert compare_all(near, matters=0.01)[0].same
    assert not compare_all(near, matters=1e-5)[0].same
    assert not compare_all({"a": [0.9, 0.8, 0.7], "b": [0.9, 0.7, 0.8]}, matters=0.01)[0].same


def test_the_error_of_all_looks_together_is_what_is_spent() -> None:
    assert spent(1) == 0
    assert all(spent(n) > 0 for n in range(2, 60))


# A paired t test at every number of seeds was wrong in 22 % of studies whose norms are all the same.
@pytest.mark.parametrize("spreads", [[0.015] * 5, [0.015] * 4 + [0.15], [0.015, 0.015, 0.045, 0.045, 0.045]])
def test_equal_norms_are_rarely_told_apart_however_often_one_looks(spreads: list[float]) -> None:
    rng, studies = np.random.default_rng(5), 300
    runs = np.clip(rng.normal(0.6, np.array(spreads)[:, None], (studies, 5, 8)), 0, 1)
    wrong = told_apart(runs).any(axis=1)
    assert wrong.sum() <= stats.binom.ppf(0.99, studies, 0.05)
    for one in (*np.flatnonzero(wrong)[:2], *np.flatnonzero(~wrong)[:2]):
        pairs = compare_all(dict(zip("abcde", runs[one].tolist(), strict=True)))
        assert any(c.detectable for c in pairs) == wrong[one]


# With Holm's correction of paired t tests three seeds named a norm in 18 % of studies, five points at 1.5 in fewer.
def test_a_norm_far_behind_is_found_with_three_seeds() -> None:
    rng = np.random.default_rng(6)
    runs = rng.normal(np.array([0.95, 0.94, 0.93, 0.92, 0.8])[:, None], 0.015, (200, 5, 3))
    assert told_apart(runs)[:, 3].mean() >= 0.8  # the fourth pair is the best and the worst


def test_the_intervals_of_means_cover_and_stay_within_what_an_accuracy_can_be() -> None:
    rng, studies, covered = np.random.default_rng(7), 100, np.zeros(5)
    means, spreads = [0.95, 0.9, 0.85, 0.6, 0.3], [0.01, 0.015, 0.02, 0.04, 0.04]
    for _ in range(studies):
        found = mean_intervals(study(rng, 3, means, spreads))
        for i, (mean, each) in enumerate(zip(means, found.values(), strict=True)):
            assert each.low is not None
            assert each.high is not None
            assert 0 <= each.low <= each.mean <= each.high <= 1
            covered[i] += each.low <= mean <= each.high
    assert covered.min() >= stats.binom.ppf(0.0005, studies, 0.95)


# Adding a seed used to turn answers off.
def test_what_a_look_has_shown_the_next_does_not_take_back() -> None:
    rng = np.random.default_rng(8)
    values = study(rng, 9, [0.9, 0.88, 0.85, 0.8], [0.015] * 4)
    told: set[frozenset[str]] = set()
    for seeds in range(2, 10):
        pairs = compare_all({norm: v[:seeds] for norm, v in values.items()})
        now = {frozenset((c.a, c.b)) for c in pairs if c.detectable}
        assert told <= now
        told = now
    assert told


# "About n more seeds" gave 49 to 71 % instead of 80: it took the measured difference for the true one.
@pytest.mark.slow
def test_as_many_seeds_as_are_said_to_be_needed_tell_norms_apart_in_four_of_five_studies() -> None:
    rng, told = np.random.default_rng(9), []
    for _ in range(100):
        means = [0.9, *(0.9 - rng.uniform(0.005, 0.06, 3))]
        values = study(rng, 40, means, [0.015] * 4)
        now = {norm: v[:3] for norm, v in values.items()}
        order = sorted(now, key=lambda norm: -float(np.mean(now[norm])))
        if any(c.detectable and {c.a, c.b} == set(order[:2]) for c in compare_all(now)):
            continue
        needed = seeds_needed(chances(now, *order[:2]))
        if needed is not None and needed <= 40:
            later = compare_all({norm: v[:needed] for norm, v in values.items()})
            told.append(any(c.detectable and {c.a, c.b} == set(order[:2]) for c in later))
    assert len(told) >= 15
    assert 0.6 <= np.mean(told) <= 0.97


def test_seeds_needed_is_the_same_at_every_call_and_none_where_it_is_hopeless() -> None:
    rng = np.random.default_rng(10)
    values = study(rng, 3, [0.9, 0.86, 0.8, 0.7], [0.03] * 4)
    found = chances(values, "a", "c")
    assert found == chances(values, "a", "c")
    assert list(found.values()) == sorted(found.values())
    assert seeds_needed(found) == max(found)
    assert seeds_needed(chances({"a": [0.9, 0.91, 0.92], "b": [0.92, 0.91, 0.9]}, "a", "b")) is None
    assert chances({"a": [0.9], "b": [0.1, 0.2]}, "a", "b") == {}


@given(st.lists(st.lists(shares | st.just(math.nan), max_size=5), max_size=6))
def test_whatever_comes_the_comparisons_are_sound(given_values: list[list[float]]) -> None:
    values = {f"n{i}": v for i, v in enumerate(given_values)}
    pairs = compare_all(values, matters=0.01)
    known = [norm for norm, v in values.items() if any(math.isfinite(x) for x in v)]
    assert [(c.a, c.b) for c in pairs] == list(itertools.combinations(known, 2))
    for c in pairs:
        assert not (c.detectable and c.same)
        if c.difference.low is not None and c.difference.high is not None:
            assert -1 <= c.difference.low <= c.difference.mean <= c.difference.high <= 1
            if c.detectable:
                assert c.difference.low > 0 or c.difference.high < 0
    for found in mean_intervals(values).values():
        assert 0 <= found.mean <= 1
        assert found.low is None or found.high is None or 0 <= found.low <= found.mean <= found.high <= 1
