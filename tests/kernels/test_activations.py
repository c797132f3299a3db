"""The activations of the specification against mpmath: no digit is lost at either end."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.kernels.activations import activation, apply, derivative


def exact(name: str, z: float) -> tuple[float, float]:
    """act(z) and act'(z), from 60 digits."""
    with mpmath.workdps(60):
        v = mpmath.mpf(z)
        if name == "silu":
            s = 1 / (1 + mpmath.exp(-v))
            return float(v * s), float(s * (1 + v * (1 - s)))
        return float(v * mpmath.ncdf(v)), float(mpmath.ncdf(v) + v * mpmath.npdf(v))


@pytest.mark.parametrize("name", ["silu", "gelu"])
@given(st.floats(-1e3, 1e3))
def test_as_mpmath(name: str, z: float) -> None:
    act = activation(name)
    assert act is not None
    for got, want in zip((apply(act, np.array([z])), derivative(act, np.array([z]))), exact(name, z), strict=True):
        assert math.isclose(got.item(), want, rel_tol=1e-15, abs_tol=2e-15)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu", "gelu"])
def test_shapes_and_ends(name: str) -> None:
    act = activation(name)
    assert act is not None
    ends = np.array([np.inf, 1e300, np.nan])
    np.testing.assert_array_equal(apply(act, ends), ends)
    for shape in ((), (0, 3), (2, 1, 3)):
        z = np.ones(shape)
        assert (np.shape(apply(act, z)), np.shape(derivative(act, z))) == (shape, shape)
