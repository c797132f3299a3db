"""The axes of a study, each said once: a field of `Cell` is a row of the table.

Everything else about an axis follows from its row: the setting of a spec, the flags of the command line, the column
of the records, the words of a report, what a verdict groups by, and what can be tuned. A new axis is one row here and
one line where training uses it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab.errors import targets
from normlab.models.given import is_given
from normlab.norms.family import describe, norm_names
from normlab.study.schedule import check_schedule

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
AUGMENTATIONS = ("crop", "flip")
PRECISIONS = ("float32", "bf16")
CLASS_WEIGHTS = ("none", "balanced")
RECIPES = ("scratch", "finetune")
DEFAULT_NORMS = tuple(
    sorted((name for name in norm_names() if describe(name).compared), key=lambda name: describe(name).usual)
)
# by precision; raise it when a change to the training code changes what a cell learns
TRAINING_CODE = {"float32": 2, "bf16": 3}

Parser = Callable[[Any], Any]


@dataclass(frozen=True)
class Axis:
    """What is said about one axis of a study.

    `name` is the field of a cell, `setting` that of a spec; `flags` and `help` belong to the command line. `parse`
    turns one value, as written, into the value, or raises ValueError; where a spec takes `several`, `split` turns what
    is written into a tuple of them. `default` is the spec's (None: it depends on the data), `shown` its text in
    `--help`. `column` names it in the records and `label` in a report. `grid` is where tuning looks, empty where there
    is nothing to tune. An axis that `groups` separates settings, and one that is `named` is part of the shortest name
    of a setting. `since` is the version of the store that brought the axis, 0 for those that every key contains.
    """

    flags: tuple[str, ...]
    help: str
    parse: Parser
    split: Parser
    several: bool
    default: Any
    shown: str | bool
    setting: str
    column: str
    label: str
    grid: tuple[float, ...]
    groups: bool
    named: bool
    since: int
    name: str = ""

    def read(self, given: Any) -> Any:
        """The setting's value from what a user wrote. Raises ValueError that says what was expected."""
        if given is None and self.default is None:
            return None
        try:
            if not self.several:
                return self.parse(given)
            values = tuple(self.parse(item) for item in self.split(given))
        except (TypeError, AttributeError):  # a table or nothing, where a file has room for anything
            raise ValueError(f"{given!r} is no value of this setting") from None
        if not values:
            raise ValueError("expected at least 1 value")
        return values


def number(
    kind: type[int] | type[float], *, least: float | None = None, above: float | None = None, below: float | None = None
) -> Parser:
    """A parser of numbers within bounds: at `least`, greater than `above`, less than `below`."""
    limits = (("of at least", least), ("greater than", above), ("less than", below))
    noun = "a whole number" if kind is int else "a finite number"
    expected = f"{noun} {' and '.join(f'{words} {limit:g}' for words, limit in limits if limit is not None)}"

    def parse(value: Any) -> Any:
        try:
            found = kind(value) if isinstance(value, str) else float(value)
            whole = kind is float or found == int(found)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected {expected}, got {value!r}") from None
        within = (least is None or found >= least) and (above is None or found > above)
        within = within and (below is None or found < below) and math.isfinite(found)
        if isinstance(value, bool) or not whole or not within:
            raise ValueError(f"expected {expected}, got {value!r}")
        return kind(found)

    return parse


def one_of(known: tuple[str, ...]) -> Parser:
    """A parser of names from a list."""

    def parse(value: Any) -> str:
        if value not in known:
            raise ValueError(f"{value!r} is not known; expected one of: {', '.join(known)}")
        return str(value)

    return parse


def text(value: Any) -> str:
    """The value itself, which must be text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a name, got {value!r}")
    return value.strip()


def switch(value: Any) -> bool:
    """True or false, also as written in a configuration file."""
    found = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in found:
        raise ValueError(f"expected true or false, got {value!r}")
    return found[str(value).lower()]


def file_name(value: Any) -> str:
    """The absolute path of a file, "" for none."""
    written = str(value or "")
    return str(Path(written).expanduser().resolve()) if written else ""


def augmentation(value: Any) -> str:
    """A setting of augmentation in its one spelling: operations sorted, "none" for nothing, or a function's name."""
    if is_own_augmentation(text(value)):
        return text(value)
    names = {name.strip() for name in text(value).replace("+", ",").split(",")} - {"none", ""}
    return ",".join(sorted(map(one_of(AUGMENTATIONS), names))) or "none"


def is_own_augmentation(setting: str) -> bool:
    """Whether a setting names a function of the user's own, `file.py:name`, or an object that was handed over."""
    return bool(targets.split(setting)[1]) or is_given(setting)


def listed(value: Any) -> tuple[Any, ...]:
    """Values separated by commas, in a list, or one alone."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def listed_norms(value: Any) -> tuple[Any, ...]:
    """Norms as `listed`; "all" stands for every registered one that a network can call with images alone."""
    found = listed(value)
    everything = tuple(name for name in norm_names() if describe(name).given is None)
    return tuple(dict.fromkeys(name for item in found for name in (everything if item == "all" else (item,))))


def counted(value: Any) -> tuple[Any, ...]:
    """Seeds: `3` stands for 0, 1, 2; a list names them."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else listed(value)


def alternatives(value: Any) -> tuple[Any, ...]:
    """Settings that contain commas themselves: one, or a list of them."""
    return (value,) if isinstance(value, str) else tuple(value)


def _axis(
    *flags: str,
    help: str,
    parse: Parser,
    default: Any,
    split: Parser = listed,
    several: bool = True,
    shown: str | bool | None = None,
    setting: str = "",
    column: str = "",
    label: str = "",
    grid: tuple[float, ...] = (),
    groups: bool = False,
    named: bool = False,
    since: int = 0,
) -> Any:
    """A row: the field of a cell with everything that is said about it."""
    if shown is None:
        values = default if several else (default,)
        shown = ",".join(f"{value:g}" if isinstance(value, int | float) else value for value in values)
    axis = Axis(
        flags, help, parse, split, several, default, shown, setting, column, label, grid, groups, named, since
    )  # fmt: skip
    if several and not since:
        return dataclasses.field(kw_only=True, metadata={"axis": axis})
    return dataclasses.field(kw_only=True, metadata={"axis": axis}, default=default[0] if several else default)


@dataclass(frozen=True)
class Cell:
    """One training: everything that decides what is learned, except the data. The fields are the table of the axes."""

    norm: str = _axis(
        "--norms", help="Norms, as in bn,gn:groups=8,gn+ws; all: every one that needs images alone.", parse=text,
        split=listed_norms, default=DEFAULT_NORMS, shown="bn,gn,ln,in,none", setting="norms",
    )  # fmt: skip
    model: str = _axis(
        "--model", "--models",
        help="resnet14, resnet20:shortcut=zero-padding, timm:NAME, torchvision:NAME, or your own: file.py:factory.",
        parse=text, default=("resnet14",), setting="models", groups=True,
    )  # fmt: skip
    seed: int = _axis(
        "--seeds", help="How many seeds, or which (0,1,5).", parse=number(int, least=0), split=counted, default=(0,),
        shown="until sure; 1 for one norm", setting="seeds",
    )  # fmt: skip
    epochs: int = _axis(
        "--epochs", help="Epochs.", parse=number(int, above=0), default=(10,), column="planned_epochs", groups=True
    )
    batch_size: int = _axis(
        "--batch-size", "--batch-sizes", help="Batch sizes.", parse=number(int, above=0), default=None,
        shown="128; 32 for few images", setting="batch_sizes", label="batch", groups=True, named=True,
    )  # fmt: skip
    optimizer: str = _axis(
        "--optimizer", "--optimizers", help=f"{', '.join(OPTIMIZERS)}.", parse=one_of(OPTIMIZERS), default=("sgd",),
        setting="optimizers", groups=True, named=True,
    )  # fmt: skip
    lr: float = _axis(
        "--lr", "--lrs", help="Learning rates.", parse=number(float, above=0), default=(0.1,), setting="lrs",
        grid=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), groups=True, named=True,
    )  # fmt: skip
    schedule: str = _axis(
        "--schedule", help="constant, cosine, step:75,95 or step:75%,95%.", parse=check_schedule,
        default="step:75%,95%", several=False,
    )  # fmt: skip
    momentum: float = _axis(
        "--momentum", help="Momentum of SGD.", parse=number(float, least=0, below=1), default=0.9, several=False
    )
    weight_decay: float = _axis(
        "--weight-decay", "--weight-decays", help="Weight decays.", parse=number(float, least=0), default=(1e-4,),
        setting="weight_decays", grid=(0.0, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3), groups=True,
    )  # fmt: skip
    dropout: float = _axis(
        "--dropout", help="Probabilities of dropping a feature.", parse=number(float, least=0, below=1),
        default=(0.0,), grid=(0.0, 0.1, 0.2, 0.3, 0.5), groups=True,
    )  # fmt: skip
    augment: str = _axis(
        "--augment", help="crop,flip, none, or file.py:function; repeat it to compare settings.", parse=augmentation,
        split=alternatives, default=None, shown="crop,flip; digits: crop", groups=True,
    )  # fmt: skip
    precision: str = _axis(
        "--precision", help="float32, or bf16 for convolutions in bfloat16.", parse=one_of(PRECISIONS),
        default="float32", several=False,
    )  # fmt: skip
    compiled: bool = _axis(
        "--compile", help="Compile the training steps; on a GPU as CUDA graphs.", parse=switch, default=False,
        several=False, shown=False, setting="compile", since=1,
    )  # fmt: skip
    label_smoothing: float = _axis(
        "--label-smoothing", help="Share of each label that is spread over all classes.",
        parse=number(float, least=0, below=1), default=(0.0,), grid=(0.0, 0.05, 0.1, 0.2), groups=True, since=2,
    )  # fmt: skip
    class_weights: str = _axis(
        "--class-weights", help="none, or balanced: every class counts as much in the loss.",
        parse=one_of(CLASS_WEIGHTS), default=("none",), groups=True, since=3,
    )  # fmt: skip
    mixup: float = _axis(
        "--mixup", help="Mix images in pairs: the parameter of the Beta distribution of the shares, 0 for none.",
        parse=number(float, least=0), default=(0.0,), grid=(0.0, 0.1, 0.2, 0.4), groups=True, since=3,
    )  # fmt: skip
    weights: str = _axis(
        "--weights", help="Pretrained weights of the model: a .safetensors, .pt or .pth file.", parse=file_name,
        default="", several=False, shown=False, since=3,
    )  # fmt: skip
    recipe: str = _axis(
        "--recipe", help="scratch, or finetune: the classifier alone first, a lower rate, a warm-up, cosine.",
        parse=one_of(RECIPES), default="scratch", several=False, shown="finetune with --weights", since=3,
    )  # fmt: skip
    warmup: float = _axis(
        "--warmup", help="Epochs in which the learning rate rises from 0.", parse=number(float, least=0), default=0.0,
        several=False, shown="0; finetune: 1", since=3,
    )  # fmt: skip

    patience: int = _axis(
        "--patience", help="Stop where validation accuracy has not risen for this many epochs; 0 for never.",
        parse=number(int, least=0), default=0, several=False, since=5,
    )  # fmt: skip
    best_epoch: bool = _axis(
        "--best-epoch", help="Test and keep the network of the best epoch on validation, not of the last.",
        parse=switch, default=False, several=False, shown=False, since=5,
    )  # fmt: skip

    def key(self, data_hash: str) -> str:
        """Identity of this training on that data: the same configuration, however written, has the same key.

        An axis that came later is left out where it has its default, so that earlier cells keep their keys.
        """
        facts = {**dataclasses.asdict(self), "data": data_hash, "code": TRAINING_CODE[self.precision]}
        for field in dataclasses.fields(self):
            if field.metadata["axis"].since and facts[field.name] == field.default:
                del facts[field.name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def columns(self) -> dict[str, Any]:
        """The cell as the records have it: values by the names of their columns."""
        return {axis.column: getattr(self, axis.name) for axis in AXES}

    def label(self) -> str:
        """Short name for people."""
        later = (
            f" {axis.label} {getattr(self, axis.name)}"
            for axis in AXES
            if axis.since and axis.groups and (getattr(self, axis.name),) != axis.default
        )
        return f"{self.norm} b{self.batch_size} {self.optimizer} lr={self.lr:g}{''.join(later)} seed {self.seed}"


def _complete_axis(field: dataclasses.Field[Any]) -> Axis:
    axis: Axis = field.metadata["axis"]
    return dataclasses.replace(
        axis,
        name=field.name,
        setting=axis.setting or field.name,
        column=axis.column or field.name,
        label=axis.label or (axis.column or field.name).removeprefix("planned_").replace("_", " "),
    )


AXES = tuple(_complete_axis(field) for field in dataclasses.fields(Cell))
GROUPING = tuple(axis.column for axis in AXES if axis.groups)
TUNABLE = {axis.name: axis for axis in AXES if axis.grid}
SCHEMA = max(axis.since for axis in AXES)
