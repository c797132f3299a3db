"""What to compare: a spec, checked field by field, that expands to cells."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from normlab.errors import UsageError, require
from normlab.norms.family import describe, norm_names
from normlab.study.schedule import check_schedule

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
AUGMENTATIONS = ("crop", "flip")
PRECISIONS = ("float32", "bf16")
TUNABLE = ("lr", "weight_decay", "dropout")
DEFAULT_NORMS = tuple(name for name in norm_names() if describe(name).compared)
_SINGULAR = {
    "norm": "norms",
    "model": "models",
    "batch_size": "batch_sizes",
    "optimizer": "optimizers",
    "lr": "lrs",
    "weight_decay": "weight_decays",
    "seed": "seeds",
    "plugin": "plugins",
}
# by precision; raise it when a change to the training code changes what a cell learns
TRAINING_CODE = {"float32": 2, "bf16": 3}


@dataclass(frozen=True)
class Cell:
    """One training: everything that decides what is learned, except the data."""

    norm: str
    model: str
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    schedule: str
    momentum: float
    weight_decay: float
    dropout: float
    augment: str
    precision: str = "float32"
    compiled: bool = False

    def key(self, data_hash: str) -> str:
        """Identity of this training on that data: the same configuration, however written, has the same key."""
        facts = {**asdict(self), "data": data_hash, "code": TRAINING_CODE[self.precision]}
        if not self.compiled:  # nor was there a choice when the first cells were named
            del facts["compiled"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def label(self) -> str:
        """Short name for people."""
        return f"{self.norm} b{self.batch_size} {self.optimizer} lr={self.lr:g} seed {self.seed}"


@dataclass(frozen=True)
class DataChoice:
    """Which images: a source, and what is done to it before training."""

    source: str
    split_seed: int = 0
    image_size: int | None = None
    skip_bad: bool = False
    limit_train: int | None = None
    limit_eval: int | None = None


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def _as_seeds(value: Any) -> Any:
    """`3` means seeds 0, 1, 2; a list names them."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else _as_tuple(value)


def _as_augmentations(value: Any) -> Any:
    """One setting ("crop,flip") or several (a list of such settings)."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    BeforeValidator(_as_tuple),
    Field(min_length=1),
]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_seeds), Field(min_length=1)]


class StudySpec(BaseModel):
    """A comparison: the data, and the axes whose product are the cells.

    `None` where the choice depends on the data: `batch_sizes` is 128, or 32 with fewer than 8,192 training
    images; `augment` is "crop,flip", or "crop" for the embedded digits, whose mirror images are no digits.
    `tune` names what is chosen for each norm on the validation split first, with `trials` trials each
    (`normlab.study.running.tuning`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    split_seed: int = Field(0, ge=0)
    image_size: int | None = Field(None, gt=0)
    skip_bad: bool = False
    limit_train: int | None = Field(None, gt=1)
    limit_eval: int | None = Field(None, gt=0)
    plugins: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()

    norms: Names = DEFAULT_NORMS
    models: Names = ("resnet14",)
    batch_sizes: Counts | None = None
    optimizers: Names = ("sgd",)
    lrs: Rates = (0.1,)
    epochs: Counts = (10,)
    dropout: Shares = (0.0,)
    weight_decays: Annotated[
        tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1),
    ] = (1e-4,)
    augment: Annotated[tuple[str, ...], BeforeValidator(_as_augmentations), Field(min_length=1)] | None = None
    seeds: Seeds = (0,)
    schedule: str = "step:75%,95%"
    momentum: float = Field(0.9, ge=0, lt=1)
    precision: str = "float32"
    compile: bool = False
    tune: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    trials: int | None = Field(None, gt=1)

    @field_validator("optimizers")
    @classmethod
    def _known_optimizers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known(names, OPTIMIZERS)

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, settings: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return settings and tuple(_augmentation(setting) for setting in settings)

    @field_validator("tune")
    @classmethod
    def _known_axes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known((name.replace("-", "_") for name in names), TUNABLE)

    @field_validator("precision")
    @classmethod
    def _known_precision(cls, name: str) -> str:
        return _all_known((name,), PRECISIONS)[0]

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str) -> str:
        return check_schedule(schedule)

    @model_validator(mode="after")
    def _no_contradiction(self) -> StudySpec:
        if "momentum" in self.model_fields_set and "sgd" not in self.optimizers:
            raise ValueError(f"momentum is for sgd, which is not among the optimizers ({', '.join(self.optimizers)})")
        if self.trials is not None and not self.tune:
            raise ValueError("trials is for tuning, and there is nothing to tune; give tune as well, as in tune = 'lr'")
        return self

    def data_choice(self) -> DataChoice:
        """Which images this study is about; a path is made absolute, so that workers find it."""
        source = str(Path(self.data).resolve()) if Path(self.data).exists() else self.data
        return DataChoice(source, self.split_seed, self.image_size, self.skip_bad, self.limit_train, self.limit_eval)

    def cells(self, train_images: int) -> list[Cell]:
        """All cells, each once; the seeds outermost, so that a study cut short has whole rounds of norms."""
        batch_sizes = self.batch_sizes or (128 if train_images >= 64 * 128 else 32,)
        augment = self.augment or ("crop" if self.data == "digits" else "crop,flip",)
        axes = itertools.product(
            self.seeds, self.models, batch_sizes, self.optimizers, self.lrs, self.epochs, self.weight_decays,
            self.dropout, augment, self.norms,
        )  # fmt: skip
        cells = (
            Cell(
                norm, model, seed, epochs, batch_size, optimizer, lr, self.schedule,
                self.momentum if optimizer == "sgd" else 0.0, decay, dropout, setting, self.precision,
                self.compile,
            )
            for seed, model, batch_size, optimizer, lr, epochs, decay, dropout, setting, norm in axes
        )  # fmt: skip
        return list(dict.fromkeys(cells))


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML or YAML file. Raises UsageError if it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--config {path} cannot be read: {e}") from None
    try:
        values = _parse_config(text, path.suffix)
    except ValueError as e:
        raise UsageError(f"--config {path} is not what its name says: {e}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: expected settings by name, as in `norms = ['bn', 'gn']`")
    return values


def merge(config: dict[str, Any], flags: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings of a file and of the command line together; raises UsageError for one that is given twice."""
    twice = [name for name in flags if name in config and config[name] != flags[name]]
    if twice:
        told = "; ".join(f"{n} is {config[n]!r} in {path} and {flags[n]!r} on the command line" for n in twice)
        raise UsageError(f"{told}; give it in one place")
    return config | flags


def plural(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings under their full names: `lr` is `lrs`. Raises UsageError if both are there."""
    both = [name for name in _SINGULAR if name in values and _SINGULAR[name] in values]
    if both:
        raise UsageError(f"{both[0]} and {_SINGULAR[both[0]]} are the same setting; give one of them")
    return {_SINGULAR.get(name, name): value for name, value in values.items()}


def make_spec(values: dict[str, Any]) -> StudySpec:
    """A checked spec; raises UsageError that names every field that is wrong, what came and what was expected."""
    try:
        return StudySpec.model_validate(plural(values))
    except ValidationError as e:
        raise UsageError("; ".join(_explain(error) for error in e.errors())) from None


def _explain(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    if error["type"] == "extra_forbidden":
        return f"{field}: there is no such setting; expected one of: {', '.join(StudySpec.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{field}: {message} (got {error['input']!r})" if field else message


def _parse_config(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        require("a YAML file", "study", "yaml")
        import yaml  # type: ignore[import-untyped]

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ValueError(str(e).replace("\n", " ")) from None
    raise ValueError(f"expected a name that ends in .toml, .yaml or .yml, got {suffix!r}")


def _all_known(names: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not known; expected one of: {', '.join(known)}")
    return names


def _augmentation(setting: str) -> str:
    """The setting in its one spelling: operations sorted, "none" for nothing."""
    names = {name.strip() for name in setting.replace("+", ",").split(",")} - {"none", ""}
    return ",".join(sorted(_all_known(names, AUGMENTATIONS))) or "none"
