"""Many small images as one, for imshow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normlab.errors import UsageError

__all__ = ["vis_grid", "vis_nn", "visualize_grid"]


def visualize_grid(Xs: np.ndarray, ubound: float = 255.0, padding: int = 1) -> np.ndarray:
    """Returns the images Xs (N, H, W, C) as a square grid, each stretched to [0, ubound], with black lines between."""
    images = _images(Xs).astype(np.float64)
    low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    stretched = ubound * ((images - low) / np.where(high > low, high - low, 1))  # 1 exactly at the largest
    return _grid(stretched, _side(images), _side(images), padding, 0.0)


def vis_grid(Xs: np.ndarray) -> np.ndarray:
    """Returns the images Xs (N, H, W, C) as a square grid, stretched together to [0, 1], with black lines between."""
    images = _images(Xs).astype(np.float64)
    side = _side(images)
    return _stretched(_grid(images, side, side, 1, float(images.min())))


def vis_nn(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Returns rows of images (H, W, C), all of one length and size, as a grid stretched to [0, 1]."""
    images = _images(np.concatenate([_images(np.asarray(row)) for row in rows])).astype(np.float64)
    return _stretched(_grid(images, len(rows), len(images) // len(rows), 1, float(images.min())))


def _grid(images: np.ndarray, rows: int, columns: int, gap: int, background: float) -> np.ndarray:
    _, height, width, channels = images.shape
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background)
    for number, image in enumerate(images):
        top, left = (height + gap) * (number // columns), (width + gap) * (number % columns)
        grid[top : top + height, left : left + width] = image
    return grid


def _stretched(grid: np.ndarray) -> np.ndarray:
    low, high = float(grid.min()), float(grid.max())
    return (grid - low) / (high - low if high > low else 1)


def _side(images: np.ndarray) -> int:
    return math.ceil(math.sqrt(len(images)))


def _images(value: np.ndarray) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or not images.size:
        raise UsageError(f"images have shape {images.shape}; expected (N, H, W, C) with at least one image")
    return images
