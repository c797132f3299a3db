"""What an experiment is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from normlab.errors import UsageError
from normlab.reproduce import COMPARISONS, EXPERIMENTS
from normlab.reproduce.finding import Finding
from normlab.reproduce.images import Images, load_images
from normlab.reproduce.verdicts import at_scale

SCALES = ("quick", "full")


@dataclass(frozen=True)
class Setting:
    """How to run an experiment: on which data, how many seeds, at which scale; `say` is called with its progress.

    `epochs`, `limit_train`, `limit_eval` and `image_size` shorten a comparison at full scale to what there is time for.
    """

    data: str | None = None
    seeds: int = 3
    scale: str = "quick"
    epochs: int | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    image_size: int | None = None
    say: Callable[[str], None] = lambda text: None

    @property
    def full(self) -> bool:
        return self.scale == "full"

    def pick(self, quick: Any, full: Any) -> Any:
        """One of two values, by scale."""
        return full if self.full else quick

    @property
    def lengths(self) -> dict[str, int]:
        """The lengths that were given: `epochs`, `limit_train`, `limit_eval`, `image_size`."""
        names = ("epochs", "limit_train", "limit_eval", "image_size")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def shortened(self, spec: Mapping[str, Any]) -> str:
        """How much shorter than the spec this is, in words, such as "3 of 100 epochs"; empty if it is not."""
        parts = []
        if self.epochs is not None and self.epochs < spec["epochs"]:
            parts.append(f"{self.epochs} of {spec['epochs']} epochs")
        if self.limit_train is not None:
            parts.append(f"{self.limit_train} training images instead of all")
        if self.limit_eval is not None:
            parts.append(f"{self.limit_eval} validation and test images instead of all")
        if self.image_size is not None and self.image_size != spec.get("image_size"):
            size, published = self.image_size, spec.get("image_size")
            instead = f" instead of {published} x {published}" if published else ""
            parts.append(f"images of {size} x {size} pixels{instead}")
        return ", ".join(parts)

    def images(self, train: int, val: int = 1000) -> Images:
        """At most `train` training and `val` validation images."""
        return load_images(self.data, train, val)


@dataclass
class Result:
    """What an experiment found.

    `charts` maps a file name to an Altair chart, `pictures` one to PNG bytes, each with a caption in `captions`.
    `setting` says in words what was run, and `scale` how that departs from what was published, if it does; `notes` are
    sentences for the reader; `records` are all numbers.
    """

    findings: list[Finding]
    setting: dict[str, str]
    charts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    scale: str = ""


def run(name: str, setting: Setting) -> Result:
    """Run an experiment by name, and note in each finding the scale at which it was decided.

    Raises UsageError naming the experiments that exist.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"experiment {name!r} is not known; expected one of: {', '.join(EXPERIMENTS)}")
    if setting.scale not in SCALES:
        raise UsageError(f"scale is {setting.scale!r}; expected one of: {', '.join(SCALES)}")
    if setting.seeds < 1:
        raise UsageError(f"seeds is {setting.seeds}; expected at least 1")
    if setting.lengths:
        _check_lengths(name, setting)
    module = import_module(f"normlab.reproduce.experiments.{name.replace('-', '_')}")
    result: Result = module.run(setting)
    result.findings = [at_scale(f, f.scale or result.scale, quick=not setting.full) for f in result.findings]
    return result


def _check_lengths(name: str, setting: Setting) -> None:
    options = " and ".join(f"--{option.replace('_', '-')}" for option in setting.lengths)
    if name not in COMPARISONS:
        raise UsageError(
            f"{options} cannot be chosen for {name!r}, whose lengths are its own; "
            f"expected one of: {', '.join(COMPARISONS)}"
        )
    if not setting.full:
        raise UsageError(f"{options} shorten what was published, and a quick run is short already; add --scale full")
    for option, value in setting.lengths.items():
        if value < 1:
            raise UsageError(f"{option} is {value}; expected at least 1")
