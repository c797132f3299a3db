"""Holds a pair of hand-written functions against torch's and against numerical gradients, in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from normlab.scratch.gradient_check import eval_numerical_gradient_array

TOLERANCE = {np.dtype(np.float32): 2e-4, np.dtype(np.float64): 1e-9}


def check_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    reference: Callable[..., torch.Tensor],
    *,
    numerical: bool = True,
    seed: int = 0,
) -> None:
    """`forward(*arrays) -> (out, cache)` and `backward(dout, cache) -> gradients` do what `reference` does.

    Compares shapes, dtypes, the output and every gradient with torch's; in float64 also with centred differences.
    """
    out, cache = forward(*arrays)
    dout = np.random.default_rng(seed).normal(size=out.shape).astype(out.dtype)
    grads = backward(dout, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = reference(*tensors)
    expected.backward(torch.from_numpy(dout))
    close(out, expected.detach().numpy(), "out")
    assert len(grads) == len(arrays)
    for i, (grad, tensor) in enumerate(zip(grads, tensors, strict=True)):
        close(grad, tensor.grad.numpy(), f"gradient {i}")
        if numerical and out.dtype == np.float64:
            changed = [a.copy() for a in arrays]
            difference = eval_numerical_gradient_array(
                lambda _, changed=changed: forward(*changed)[0], changed[i], dout
            )
            scale = max(1.0, float(abs(difference).max(initial=0)))
            np.testing.assert_allclose(grad, difference, rtol=1e-5, atol=1e-7 * scale, err_msg=f"numerical {i}")


def close(got: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Same shape and dtype, and values that differ by rounding only."""
    assert got.shape == expected.shape, (name, got.shape, expected.shape)
    assert got.dtype == expected.dtype, (name, got.dtype, expected.dtype)
    tolerance = TOLERANCE[got.dtype]
    scale = max(1.0, float(abs(expected).max(initial=0)))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name)
