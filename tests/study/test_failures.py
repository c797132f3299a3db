"""Failures against binomial probabilities, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from normlab.study.failures import failing


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({"none": (3, 3), "bn": (0, 3)}, ["none"]),
        ({"none": (2, 2), "bn": (0, 2)}, []),
        ({"none": (2, 3), "bn": (0, 3), "gn": (0, 3), "ln": (0, 3)}, []),
        ({"none": (3, 5), "bn": (0, 5), "gn": (0, 5), "ln": (0, 5)}, ["none"]),
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


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5])
def test_norms_that_fail_alike_are_rarely_told_apart(rate: float) -> None:
    failed = np.random.default_rng(0).binomial(3, rate, (1000, 7))
    wrong = sum(bool(failing({str(i): (int(f), 3) for i, f in enumerate(study)})) for study in failed)
    assert wrong <= 45
