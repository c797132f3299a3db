"""The cases that `make test` keeps of a product hold every pair of values."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.covering import Values, covering

PRODUCT: list[Values] = [
    dict(zip("abcd", values, strict=True)) for values in product(range(5), range(4), range(3), range(2))
]


def combined(cases: list[Values], axes: tuple[str, ...]) -> set[tuple[object, ...]]:
    return {tuple(case[name] for name in axes) for case in cases}


@pytest.mark.parametrize(("axes", "most"), [((), 24), (("a", "c", "d"), 36), (tuple("abcd"), 120)])
def test_every_pair_is_kept(axes: tuple[str, ...], most: int) -> None:
    kept = [PRODUCT[i] for i in covering(PRODUCT, axes)]
    for group in (*combinations("abcd", 2), axes):
        assert combined(kept, group) == combined(PRODUCT, group)
    assert len(kept) <= most


def test_what_is_never_together_is_not_asked_for() -> None:
    cases: list[Values] = [{"norm": norm, "rank": rank} for norm, rank in [("bn", 2), ("bn", 3), ("in", 3)]]
    assert covering(cases) == {0, 1, 2}


def test_one_case_and_one_axis() -> None:
    assert covering([{"a": 1}]) == {0}
    assert covering([{"a": i % 2} for i in range(6)]) == {0, 1}


def test_wrong_axis() -> None:
    with pytest.raises(ValueError, match="no axis e; expected one of a, b, c, d"):
        covering(PRODUCT, "ae")
