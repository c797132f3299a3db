"""A folder of small colour pictures that two classes of are easy to tell apart, as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("leaf", "sky")


def picture(kind: int, rng: np.random.Generator, size: int = 12) -> np.ndarray:
    """A greenish or a bluish picture, uint8 (size, size, 3)."""
    pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    pixels[..., 1 + kind] += 100
    return pixels


def write_folder(root: Path, each: int = 20) -> Path:
    """Write `each` PNG files per class, class/number.png; returns the folder."""
    rng = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(picture(kind, rng)).save(root / name / f"{number}.png")
    return root
