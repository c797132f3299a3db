"""Failures against binomial probabilities, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from normlab.study.failures import failing


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({"none": (3, 3), "bn": (0, 3)}, ["none"]),
        ({"none": (2, 2), "bn": (0, 2)}, []),
        ({"none": (2, 3), "bn": (0, 3), "gn": (0, 3), "ln": (0, 3)}, []),
        ({"none": (4, 5), "bn": (0, 5), "gn": (0, 5), "ln": (0, 5)}, ["none"]),
        # two that never learn hid each other: one alone had to have failed
        ({"none": (3, 3), "ln": (3, 3), "bn": (0, 3), "gn": (0, 3), "in": (0, 3), "bin": (0, 3)}, ["none", "ln"]),
        ({"none": (3, 3), "bn": (3, 3)}, []),
        ({"none": (1, 3), "bn": (0, 3), "gn": (0, 3)}, []),
        ({"none": (2, 12), "bn": (0, 12), "gn": (0, 12)}, []),
        ({"bn": (2, 2)}, []),
        ({}, []),
    ],
)
def test_a_norm_that_fails_where_others_never_do_is_behind(
    failures: dict[str, tuple[int, int]], expected: list[str]
) -> None:
    assert failing(failures) == expected


# At the same bound for every number of seeds, ten looks were wrong in 9 to 12 % of such studies.
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3])
def test_norms_that_fail_alike_are_rarely_told_apart_however_often_one_looks(rate: float) -> None:
    studies = np.cumsum(np.random.default_rng(0).random((200, 7, 12)) < rate, axis=2)
    wrong = sum(
        any(failing({str(i): (int(f), seeds) for i, f in enumerate(study[:, seeds - 1])}) for seeds in range(3, 13))
        for study in studies
    )
    assert wrong <= stats.binom.ppf(0.99, 200, 0.05)
