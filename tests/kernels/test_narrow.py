"""Half precision in compiled code: every half there is, and every way to round to one, as torch converts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from normlab.kernels.runtime import narrow as _narrow

KINDS = [(torch.bfloat16, _narrow.BFLOAT16), (torch.float16, _narrow.FLOAT16)]


@njit
def widened(halves: Any, numbers: Any) -> None:
    for k in range(halves.size):
        numbers[k] = _narrow.number(halves[k])


@njit
def narrowed(numbers: Any, halves: Any) -> None:
    for k in range(numbers.size):
        halves[k] = _narrow.element(numbers[k], halves)


def all_halves(kind: Any) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(kind)


def in_torch(halves: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(halves.view(np.int16).copy()).view(dtype).float().numpy()


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_every_half_is_widened_to_the_same_number(dtype: torch.dtype, kind: Any) -> None:
    numbers = np.empty(1 << 16, np.float32)
    widened(all_halves(kind), numbers)
    want = in_torch(all_halves(kind), dtype)
    np.testing.assert_array_equal(numbers, want)
    rest = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(numbers[rest]), np.signbit(want[rest]))


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_numbers_are_rounded_as_by_torch(dtype: torch.dtype, kind: Any) -> None:
    """Every half, what lies halfway to the next one and right beside that, and any bits at all."""
    exact = in_torch(all_halves(kind), dtype).view(np.uint32).astype(np.int64)
    halfway = 1 << (15 if kind is _narrow.BFLOAT16 else 12)
    near = [exact + halfway * step + shift for step in (0, 1) for shift in (-1, 0, 1)]
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000)
    numbers = (np.concatenate([*near, anything]) & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    halves = np.empty(numbers.size, kind)
    narrowed(numbers, halves)
    got, want = in_torch(halves, dtype), torch.from_numpy(numbers).to(dtype).float().numpy()
    np.testing.assert_array_equal(got, want)
    rest = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[rest]), np.signbit(want[rest]))


def test_other_numbers_stay_what_they_are() -> None:
    for dtype in (np.float32, np.float64):
        numbers, out = np.random.default_rng(0).normal(size=9).astype(dtype), np.empty(9, dtype)
        narrowed(numbers, out)
        np.testing.assert_array_equal(out, numbers)
