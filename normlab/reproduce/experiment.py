"""What an experiment is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from normlab.errors import UsageError
from normlab.reproduce import EXPERIMENTS
from normlab.reproduce.images import Images, load_images

SCALES = ("quick", "full")


@dataclass(frozen=True)
class Setting:
    """How to run an experiment: on which data, how many seeds, at which scale; `say` hears of progress."""

    data: str | None = None
    seeds: int = 3
    scale: str = "quick"
    say: Callable[[str], None] = lambda text: None

    @property
    def full(self) -> bool:
        return self.scale == "full"

    def pick(self, quick: Any, full: Any) -> Any:
        """One of two values, by scale."""
        return full if self.full else quick

    def images(self, train: int, val: int = 1000) -> Images:
        """At most `train` training and `val` validation images."""
        return load_images(self.data, train, val)


@dataclass(frozen=True)
class Finding:
    """One line of the verdict: what was reported, what was measured, and by which rule they were compared."""

    claim: str
    reported: str
    measured: str
    verdict: str
    rule: str
    values: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Result:
    """What an experiment answers.

    `charts` maps a file name to an Altair chart, `pictures` one to PNG bytes, each with a caption in `captions`.
    `setting` says in words what was run; `notes` are sentences for the reader; `records` are all numbers.
    """

    findings: list[Finding]
    setting: dict[str, str]
    charts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


def run(name: str, setting: Setting) -> Result:
    """Runs an experiment by name; raises UsageError naming the ones that exist."""
    if name not in EXPERIMENTS:
        raise UsageError(f"experiment {name!r} is not known; expected one of: {', '.join(EXPERIMENTS)}")
    if setting.scale not in SCALES:
        raise UsageError(f"scale is {setting.scale!r}; expected one of: {', '.join(SCALES)}")
    if setting.seeds < 1:
        raise UsageError(f"seeds is {setting.seeds}; expected at least 1")
    module = import_module(f"normlab.reproduce.experiments.{name.replace('-', '_')}")
    result: Result = module.run(setting)
    return result
