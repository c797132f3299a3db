"""What to compare: a spec, checked field by field, that expands to cells."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from normlab.errors import UsageError
from normlab.errors.files import read_text
from normlab.study.axes import AXES, TUNABLE, Axis, Cell, listed, one_of
from normlab.study.parsing import MOST_BYTES, parse

# what --recipe finetune changes of the defaults, besides training the classifier alone first
FINETUNE = {"lrs": (0.01,), "warmup": 1.0, "schedule": "cosine"}
# settings by the names that they have for one value
_SINGULAR = {axis.name: axis.setting for axis in AXES if axis.name != axis.setting} | {"plugin": "plugins"}


@dataclass(frozen=True)
class DataChoice:
    """Which images: a source, and what is done to it before training."""

    source: str
    split_seed: int = 0
    image_size: int | None = None
    skip_bad: bool = False
    limit_train: int | None = None
    limit_eval: int | None = None
    drop_leaks: bool = False
    drop_rare: bool = False
    full_range: bool = False
    no_limits: bool = False


class _Images(BaseModel):
    """Which images, and the code to import first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    split_seed: int = Field(0, ge=0, description="Seed of the split, where the data has none.")
    image_size: int | None = Field(None, gt=0, description="Bring images to this size.")
    skip_bad: bool = Field(False, description="Go on without images that cannot be read.")
    drop_leaks: bool = Field(False, description="Leave out training images that are copies of test images.")
    drop_rare: bool = Field(False, description="Leave out classes of too few images to be split.")
    full_range: bool = Field(False, description="Scale 16-bit images from their own range of pixels to 8 bits.")
    no_limits: bool = Field(
        False, description="Read data that unpack like a bomb, or have too many rows.", exclude=True
    )
    limit_train: int | None = Field(None, gt=1, description="Train on this many images only.")
    limit_eval: int | None = Field(None, gt=0, description="Validate and test on this many images only.")
    plugins: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        (), description="Norms of your own: package.module or file.py, or one of these and :name."
    )


_OnAxes: Any = create_model(
    "_OnAxes",
    __base__=_Images,
    **{  # type: ignore[call-overload]
        axis.setting: (Annotated[Any, BeforeValidator(axis.read)], Field(axis.default, description=axis.help))
        for axis in AXES
    },
)


class StudySpec(_OnAxes):  # type: ignore[misc]  # which was made of the table of axes
    """A comparison: the data, and the axes (`normlab.study.axes`) whose product are the cells.

    `None` where the choice depends on the data: `batch_sizes` is 128, or 32 with fewer than 8,192 training
    images; `augment` is "crop,flip", or "crop" for the embedded digits, whose mirror images are no digits.
    `tune` names what is chosen for each norm on the validation split first, with `trials` trials each
    (`normlab.study.running.tuning`). With `weights` the `recipe` is "finetune", which changes defaults: a learning
    rate of 0.01, one epoch of warm-up, cosine.
    """

    tune: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        (), description=f"Choose {', '.join(TUNABLE).replace('_', '-')} for each norm by validation first."
    )
    trials: int | None = Field(None, gt=1, description="Trials of tuning for each norm.")

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        """With weights the recipe is that of fine-tuning, and with that the settings that it brings, unless given."""
        if not isinstance(values, dict):
            return values
        if values.get("weights"):
            values = {"recipe": "finetune", **values}
        return {**FINETUNE, **values} if values.get("recipe") == "finetune" else values

    @field_validator("tune")
    @classmethod
    def _known_axes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(one_of(tuple(TUNABLE)), (name.replace("-", "_") for name in names)))

    @model_validator(mode="after")
    def _check_contradictions(self) -> StudySpec:
        if "momentum" in self.model_fields_set and "sgd" not in self.optimizers:
            raise ValueError(f"momentum is for sgd, which is not among the optimizers ({', '.join(self.optimizers)})")
        if self.trials is not None and not self.tune:
            raise ValueError("trials is for tuning, and there is nothing to tune; give tune as well, as in tune = 'lr'")
        return self

    def data_choice(self) -> DataChoice:
        """Which images this study is about; a path is made absolute, so that workers find it."""
        source = str(Path(self.data).resolve()) if Path(self.data).exists() else self.data
        rest = {field.name: getattr(self, field.name) for field in fields(DataChoice) if field.name != "source"}
        return DataChoice(source, **rest)

    def cells(self, train_images: int) -> list[Cell]:
        """All cells, each once; the seeds outermost, so that a study cut short has whole rounds of norms."""
        by_data = {
            "batch_size": (128 if train_images >= 64 * 128 else 32,),
            "augment": ("crop" if self.data == "digits" else "crop,flip",),
        }
        chosen = {axis.name: self._values(axis) or by_data[axis.name] for axis in AXES}
        order = ("seed", *(name for name in chosen if name not in ("seed", "norm")), "norm")
        found = (dict(zip(order, values, strict=True)) for values in product(*(chosen[name] for name in order)))
        return list(dict.fromkeys(Cell(**(f if f["optimizer"] == "sgd" else {**f, "momentum": 0.0})) for f in found))

    def _values(self, axis: Axis) -> tuple[Any, ...] | None:
        """What the spec has for an axis, as a tuple; None where the data decides."""
        value = getattr(self, axis.setting)
        return value if axis.several else (value,)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML or YAML file. Raises UsageError if it is neither."""
    try:
        values = parse(read_text(path, MOST_BYTES), path.suffix)
    except OSError as e:
        raise UsageError(f"--config {path} cannot be read: {e}") from None
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
