"""Wrong orders of axes: an input that is reshaped to rows of channels without moving the channels there, or back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.oracle import Array, Case, Stages, bare, scaled
from normlab.check.slips.base import ForwardSlip

ROWS = "rows = x.transpose(0, 2, 3, 1).reshape(-1, C); back: rows.reshape(N, H, W, C).transpose(0, 3, 1, 2)"


def moved_rows(a: NDArray[Any], channels: int) -> Array:
    """(N, C, *) as rows of channels, as it should be."""
    return np.moveaxis(np.asarray(a, dtype=np.float64), 1, -1).reshape(-1, channels)


def cut_rows(a: NDArray[Any], channels: int) -> Array:
    """(N, C, *) cut into rows in the order of memory: a row holds values of several positions."""
    return np.asarray(a, dtype=np.float64).reshape(-1, channels)


def moved_back(rows: Array, shape: tuple[int, ...]) -> Array:
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def cut_back(rows: Array, shape: tuple[int, ...]) -> Array:
    return rows.reshape(shape)


# how an array comes into rows and goes back, where one of the two or both are wrong
WAYS: tuple[tuple[str, Callable[..., Array], Callable[..., Array]], ...] = (
    ("the input is reshaped to (N * H * W, C) without moving the channel axis to the end first", cut_rows, cut_back),
    (
        "the input is reshaped to (N * H * W, C) without moving the channel axis to the end first; the output is moved",
        cut_rows,
        moved_back,
    ),
    (
        "the rows of channels are reshaped to (N, C, H, W) without moving the channel axis back to its place",
        moved_rows,
        cut_back,
    ),
)


def _stages(into: Callable[..., Array], back: Callable[..., Array], weight_in_rows: bool) -> Stages:
    def inner(case: Case) -> Case:
        recipe = replace(case.recipe, channel_axis=1)
        inside = replace(case, recipe=recipe, x=into(case.x, recipe.channels))
        return inside if weight_in_rows else bare(inside)

    def outer(case: Case, y: Array) -> Array:
        out = back(y, case.x.shape)
        return out if weight_in_rows else scaled(case, case.recipe.to_grid(out))

    return Stages(inner=inner, outer=outer)


MOVED: tuple[ForwardSlip, ...] = tuple(
    ForwardSlip(
        "axes-not-moved" if into is cut_rows else "not-permuted-back",
        sentence,
        ROWS,
        ("batch",),
        _stages(into, back, weight_in_rows),
    )
    for sentence, into, back in WAYS
    for weight_in_rows in (True, False)
)
