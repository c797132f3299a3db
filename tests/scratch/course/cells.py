"""What the cells of a notebook have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from normlab.scratch.course.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array


def rel_error(x: Any, y: Any) -> float:
    """The notebooks' own: the largest |x - y| / max(1e-8, |x| + |y|)."""
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y))))


def gradient_errors(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    settings: Sequence[Any],
    dout: np.ndarray,
) -> list[float]:
    """The relative error of every gradient of `forward(*arrays, *settings)`."""
    _, cache = forward(*arrays, *settings)
    grads = backward(dout, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert len(grads) == len(arrays)
    errors = []
    for i, (array, grad) in enumerate(zip(arrays, grads, strict=True)):
        changed = [*arrays]
        changed[i] = array.copy()
        numerical = eval_numerical_gradient_array(
            lambda _, changed=changed: forward(*changed, *settings)[0], changed[i], dout
        )
        errors.append(rel_error(numerical, grad))
    return errors


def net_errors(net: Any, X: np.ndarray, y: np.ndarray, h: float = 1e-5) -> dict[str, float]:
    """The relative error of every gradient of a network's loss."""
    _, grads = net.loss(X, y)
    return {
        name: rel_error(
            eval_numerical_gradient(lambda _: net.loss(X, y)[0], net.params[name], verbose=False, h=h), grads[name]
        )
        for name in sorted(grads)
    }


def below(errors: Sequence[float], published: Sequence[float], factor: float = 10) -> None:
    """Asserts that no error is more than `factor` times the one that the notebook prints."""
    assert len(errors) == len(published)
    for error, printed in zip(errors, published, strict=True):
        assert error < factor * printed, (errors, published)
