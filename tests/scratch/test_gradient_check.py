"""Numerical gradients of functions whose gradients are known."""

from __future__ import annotations

import numpy as np
import pytest

from normlab.errors import UsageError
from normlab.scratch.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, rel_error


def test_gradient_of_a_scalar_function() -> None:
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    kept = x.copy()
    grad = eval_numerical_gradient(lambda x: float((x**3).sum()), x, verbose=False, h=1e-5)
    np.testing.assert_allclose(grad, 3 * x**2, rtol=1e-8)
    assert np.array_equal(x, kept)


def test_gradient_of_an_array_function_through_a_closure() -> None:
    x, df = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, -2.0])
    np.testing.assert_allclose(eval_numerical_gradient_array(lambda _: x**2, x, df), 2 * x * df, rtol=1e-8)


def test_non_contiguous_and_single_precision_arrays() -> None:
    x = np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2]
    np.testing.assert_allclose(eval_numerical_gradient(lambda x: float((x**2).sum()), x), 2 * x, atol=1e-5)
    small = np.array([1.0, 2.0], np.float32)
    # 1e-3 is not representable, and the step that was taken is what the difference is divided by
    np.testing.assert_allclose(eval_numerical_gradient(lambda x: float(x.sum()), small, h=1e-3), 1, rtol=1e-3)


def test_verbose_prints_every_element(capsys: pytest.CaptureFixture[str]) -> None:
    eval_numerical_gradient(lambda x: float(x.sum()), np.zeros(3), verbose=True)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_relative_error() -> None:
    assert rel_error([1.0, 2.0], [1.0, 2.2]) == pytest.approx(0.2 / 4.2)
    assert rel_error(np.zeros(3), np.zeros(3)) == 0
    assert rel_error([0.0], [1e-9]) == pytest.approx(0.1)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="x must be a float array, which is changed in place; got int64"):
        eval_numerical_gradient(lambda x: 0.0, np.arange(3))
    with pytest.raises(UsageError, match=r"df has shape \(2,\); expected \(3,\)"):
        eval_numerical_gradient_array(lambda x: x, np.zeros(3), np.zeros(2))
    with pytest.raises(UsageError, match="one shape"):
        rel_error(np.zeros(2), np.zeros(3))
