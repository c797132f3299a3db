"""What an experiment is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from normlab.errors import UsageError
from normlab.reproduce import COMPARISONS, EXPERIMENTS
from normlab.reproduce.finding import Finding
from normlab.reproduce.images import Images, load_images
from normlab.reproduce.verdicts import at_scale

SCALES = ("quick", "small", "full")
LENGTHS = ("epochs", "limit_train", "limit_eval", "image_size", "model")
SEEDS = {"quick": 3, "small": 8, "full": 5}  # where none are named


@dataclass(frozen=True)
class Setting:
    """How to run an experiment: on which data, how many seeds, at which scale; `say` is called with its progress.

    A quick run decides nothing. A small one is made to decide in minutes: smaller images, a narrower network and more
    seeds than published, which each experiment chooses (its `SMALL`). `epochs`, `limit_train`, `limit_eval`,
    `image_size` and `model` shorten a small or full comparison to what there is time for.
    """

    data: str | None = None
    seeds: int | None = None
    scale: str = "quick"
    epochs: int | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    image_size: int | None = None
    model: str | None = None
    say: Callable[[str], None] = lambda text: None

    @property
    def quick(self) -> bool:
        return self.scale == "quick"

    @property
    def seed_range(self) -> range:
        """The seeds, from 0 on."""
        return range(SEEDS[self.scale] if self.seeds is None else self.seeds)

    def pick(self, quick: Any, full: Any, small: Any = None) -> Any:
        """One of the values, by scale; a small run is as the full one where nothing else is given."""
        if self.quick:
            return quick
        return full if self.scale == "full" or small is None else small

    @property
    def lengths(self) -> dict[str, Any]:
        """The lengths that were given: `epochs`, `limit_train`, `limit_eval`, `image_size`, `model`."""
        return {name: value for name in LENGTHS if (value := getattr(self, name)) is not None}

    @property
    def shorter(self) -> dict[str, Any]:
        """The lengths as entries of a study's spec."""
        return {"models" if name == "model" else name: value for name, value in self.lengths.items()}

    def shortened(self, spec: Mapping[str, Any]) -> str:
        """What is shorter here than in the spec, in words, such as "3 of 100 epochs"; empty if nothing is."""
        parts = []
        if self.model is not None and self.model != spec["models"]:
            parts.append(self.model)
        if self.epochs is not None and self.epochs < spec["epochs"]:
            parts.append(f"{self.epochs} of {spec['epochs']} epochs")
        if self.limit_train is not None:
            parts.append(f"{self.limit_train} training images")
        if self.limit_eval is not None:
            parts.append(f"{self.limit_eval} validation and test images")
        if self.image_size is not None and self.image_size != spec.get("image_size"):
            parts.append(f"{self.image_size} x {self.image_size} pixels")
        return ", ".join(parts)

    def images(self, train: int, val: int = 1000) -> Images:
        """At most `train` training and `val` validation images."""
        return load_images(self.data, train, val)


@dataclass
class Result:
    """What an experiment found.

    `charts` maps a file name to an Altair chart, `pictures` one to PNG bytes, each with a caption in `captions`.
    `setting` says in words what was run, and `scale` how that departs from what was published, if it does; `notes` are
    sentences for the reader; `records` are all numbers. `seconds` is how long the trainings took, which is more than
    the run where it resumes earlier ones.
    """

    findings: list[Finding]
    setting: dict[str, str]
    charts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    scale: str = ""
    seconds: float = 0.0


def run(name: str, setting: Setting) -> Result:
    """Run an experiment by name, and note in each finding the scale at which it was decided.

    Raises UsageError naming the experiments that exist.
    """
    setting = complete(name, setting)
    result: Result = _module(name).run(setting)
    result.findings = [at_scale(f, f.scale or result.scale, quick=setting.quick) for f in result.findings]
    return result


def complete(name: str, setting: Setting) -> Setting:
    """The setting with what the experiment itself chooses for a small run, where nothing else is given.

    Raises UsageError naming the experiments that exist, or what is wrong with the setting.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"experiment {name!r} is not known; expected one of: {', '.join(EXPERIMENTS)}")
    if setting.scale not in SCALES:
        raise UsageError(f"scale is {setting.scale!r}; expected one of: {', '.join(SCALES)}")
    if setting.seeds is not None and setting.seeds < 1:
        raise UsageError(f"seeds is {setting.seeds}; expected at least 1")
    if setting.lengths:
        _check_lengths(name, setting)
    if setting.scale != "small":
        return setting
    chosen = getattr(_module(name), "SMALL", {})
    return replace(setting, **{key: value for key, value in chosen.items() if getattr(setting, key) is None})


def _module(name: str) -> Any:
    return import_module(f"normlab.reproduce.experiments.{name.replace('-', '_')}")


def _check_lengths(name: str, setting: Setting) -> None:
    options = " and ".join(f"--{option.replace('_', '-')}" for option in setting.lengths)
    if name not in COMPARISONS:
        raise UsageError(
            f"{options} cannot be chosen for {name!r}, whose lengths are its own; "
            f"expected one of: {', '.join(COMPARISONS)}"
        )
    if setting.quick:
        raise UsageError(f"{options} shorten what was published, and a quick run is short already; add --scale full")
    for option, value in setting.lengths.items():
        if option != "model" and value < 1:
            raise UsageError(f"{option} is {value}; expected at least 1")
