"""What is to be known of a trained network besides its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normlab.data import SIXTEEN_BITS


@dataclass(frozen=True)
class Facts:
    """What a trained network is, as plain values that fit into a file.

    `settings` is the cell that was trained, by the columns of the records; `metrics` has the last epoch's validation
    figures and those of the test split; `versions` says what it was trained with; `data` has the name and the hash of
    the images; `levels` are the pixels of 16-bit images that become 0 and 255.
    """

    model: str
    norm: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: tuple[int, int] = SIXTEEN_BITS
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Facts:
        """The facts in a file's header; TypeError, KeyError or ValueError for what is none."""
        lists = {name: tuple(given[name]) for name in ("class_names", "image_shape", "mean", "std")}
        low, high = map(int, given.get("levels", cls.levels))
        channels, height, width = map(int, lists.pop("image_shape"))
        return cls(**{**given, **lists, "image_shape": (channels, height, width), "levels": (low, high)})
