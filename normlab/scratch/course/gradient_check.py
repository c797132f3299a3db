"""Numerical gradients, in the assignments' forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from normlab.scratch import gradient_check
from normlab.scratch.gradient_check import eval_numerical_gradient_array, rel_error

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
]


def eval_numerical_gradient(
    f: Callable[[np.ndarray], float], x: np.ndarray, verbose: bool = True, h: float = 1e-5
) -> np.ndarray:
    """`normlab.scratch.gradient_check.eval_numerical_gradient`, which prints every element by default."""
    return gradient_check.eval_numerical_gradient(f, x, verbose, h)


def eval_numerical_gradient_blobs(
    f: Callable[..., Any], inputs: Sequence[Any], output: Any, h: float = 1e-5
) -> list[np.ndarray]:
    """Gradients of sum(output.diffs * output.vals) with respect to the vals of every input.

    Blobs have arrays `vals` and `diffs`; `f(*inputs, output)` reads the inputs' vals and writes the output's.
    """

    def values(_: np.ndarray) -> np.ndarray:
        f(*inputs, output)
        out: np.ndarray = output.vals
        return out

    return [eval_numerical_gradient_array(values, blob.vals, output.diffs, h) for blob in inputs]


def eval_numerical_gradient_net(net: Any, inputs: Sequence[Any], output: Any, h: float = 1e-5) -> list[np.ndarray]:
    """`eval_numerical_gradient_blobs` of a network whose `forward()` reads the inputs and writes the output."""
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h)


def grad_check_sparse(
    f: Callable[[np.ndarray], float], x: np.ndarray, analytic_grad: np.ndarray, num_checks: int = 10, h: float = 1e-5
) -> None:
    """Prints numerical and analytic gradient, and their relative error, at random elements of x."""
    for _ in range(num_checks):
        index = tuple(random.randrange(size) for size in x.shape)
        kept = x[index]
        x[index] = kept + h
        above = f(x)
        x[index] = kept - h
        below = f(x)
        x[index] = kept
        numerical, analytic = (above - below) / (2 * h), analytic_grad[index]
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {rel_error(numerical, analytic):e}")
