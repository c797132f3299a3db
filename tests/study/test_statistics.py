"""Statistics against SciPy, and against what they promise: simulated studies by the thousand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.study.statistics import compare_all, holm, interval, seeds_needed

STUDIES = 2000


def test_the_interval_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).normal(0.9, 0.02, 7)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    found = interval(x.tolist())
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mean, found.n) == (pytest.approx(x.mean()), 7)


def test_the_bootstrap_is_that_of_scipy() -> None:
    x = np.random.default_rng(1).exponential(1, 25)
    expected = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=4999, rng=np.random.default_rng(5))
    found = interval(x.tolist(), method="bootstrap")
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03)
    assert found.mean - found.low != pytest.approx(found.high - found.mean), "skewed data, skewed interval"


def test_one_seed_has_no_interval() -> None:
    found = interval([0.9])
    assert (found.mean, found.low, found.high, found.n) == (0.9, None, None, 1)
    (pair,) = compare_all({"a": {0: 0.9}, "b": {0: 0.1}})
    assert (pair.p, pair.p_corrected, pair.effect, pair.seeds_needed, pair.detectable) == (
        None,
        None,
        None,
        None,
        False,
    )


def test_no_values_are_told() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_the_comparison_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.8, 0.1, 6), rng.normal(0.7, 0.1, 6)
    (pair,) = compare_all({"a": dict(enumerate(a)), "b": dict(enumerate(b))})
    expected = stats.ttest_rel(a, b)
    assert pair.p == pytest.approx(expected.pvalue)
    assert pair.difference.mean == pytest.approx((a - b).mean())
    low, high = expected.confidence_interval()
    assert (pair.difference.low, pair.difference.high) == pytest.approx((low, high))
    assert pair.effect == pytest.approx((a - b).mean() / (a - b).std(ddof=1))


def test_only_seeds_that_both_have_are_compared() -> None:
    (pair,) = compare_all({"a": {0: 0.5, 1: 0.6, 2: 0.9}, "b": {1: 0.5, 2: 0.7, 3: 0.1}})
    assert pair.difference.n == 2
    assert pair.difference.mean == pytest.approx(0.15)
    assert compare_all({"a": {0: 0.5}, "b": {1: 0.5}}) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    ordered = sorted(p_values)
    m = len(p_values)
    expected = {p: min(1.0, max((m - j) * q for j, q in enumerate(ordered[: ordered.index(p) + 1]))) for p in p_values}
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= 1
        assert adjusted >= expected[p] - 1e-12
    assert min(holm(p_values)) == pytest.approx(min(1.0, m * ordered[0]))


def test_holm_on_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_seeds_needed_is_where_the_simulated_power_reaches_80_percent() -> None:
    n = seeds_needed(0.01, 0.01)
    assert n is not None
    rng = np.random.default_rng(3)

    def power(seeds: int) -> float:
        d = rng.normal(0.01, 0.01, (4000, seeds))
        return float((stats.ttest_1samp(d, 0, axis=1).pvalue <= 0.05).mean())

    assert power(n) > 0.78
    assert power(n - 2) < 0.78
    assert seeds_needed(0.01, 0.01, comparisons=21) > n  # type: ignore[operator]


def test_a_difference_that_is_not_there_takes_for_ever() -> None:
    assert seeds_needed(0.0, 0.1) is None
    assert seeds_needed(1e-6, 0.1) is None


def test_equal_values_of_two_seeds_are_not_certainty() -> None:
    values = {"a": {0: 0.90, 1: 0.90}, "b": {0: 0.89, 1: 0.89}}
    (exact,) = compare_all(values)
    assert exact.p == 0
    (measured,) = compare_all(values, resolution=1 / 100)
    assert measured.p is not None
    assert measured.p > 0.05
    assert measured.difference.low is not None
    assert measured.difference.low < 0


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_covers_the_truth_in_95_of_100_studies(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    truth = 0.85
    # what a seed does to all norms is large, what it does to one is small: that is why differences are paired
    covered = 0
    for _ in range(STUDIES):
        shared = rng.normal(0, 0.02, seeds)
        a = truth + shared + rng.normal(0, 0.005, seeds)
        b = truth - 0.01 + shared + rng.normal(0, 0.005, seeds)
        (pair,) = compare_all({"a": dict(enumerate(a)), "b": dict(enumerate(b))})
        assert pair.difference.low is not None
        assert pair.difference.high is not None
        covered += pair.difference.low <= 0.01 <= pair.difference.high
    assert 0.93 <= covered / STUDIES <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_norms_are_told_apart_in_at_most_5_of_100_studies(seeds: int) -> None:
    rng = np.random.default_rng(40 + seeds)
    images = 1000
    wrong = naive = 0
    for _ in range(STUDIES):
        shared = rng.normal(0, 0.02, seeds)
        accuracy = np.clip(0.85 + shared + rng.normal(0, 0.01, (7, seeds)), 0, 1)
        accuracy = np.round(accuracy * images) / images
        pairs = compare_all(
            {f"norm{i}": dict(enumerate(values)) for i, values in enumerate(accuracy)}, resolution=1 / images
        )
        wrong += any(pair.detectable for pair in pairs)
        naive += any(pair.p is not None and pair.p <= 0.05 for pair in pairs)
    assert wrong / STUDIES <= 0.05
    assert naive / STUDIES > 0.2, "without a correction it would be many more: the simulation can fail"


def test_differences_that_are_there_are_found() -> None:
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(200):
        shared = rng.normal(0, 0.02, 5)
        values = {
            name: 0.8 + shift + shared + rng.normal(0, 0.004, 5) for name, shift in (("a", 0.05), ("b", 0), ("c", 0))
        }
        pairs = compare_all({name: dict(enumerate(v)) for name, v in values.items()})
        found += any({p.a, p.b} == {"a", "b"} and p.detectable for p in pairs)
    assert found > 180


def test_an_interval_prints_itself() -> None:
    assert str(interval([0.5])) == "0.5000"
    assert str(interval([0.4, 0.6])).startswith("0.5000 [")
    assert math.isfinite(interval([0.5, 0.5]).low or math.nan)
