"""What is done to the images of a batch in training: cropping and flipping, or a function of the user's own.

A function `change(images, generator)` gets the whole batch, uint8 (N, C, H, W), and a CPU generator that is seeded for
this step. Anything that takes one argument, as the transforms of torchvision do, gets one image, uint8 (C, H, W), at a
time, and draws from torch's own generator, which is seeded in the same way. Either returns images of the same type and
shape: they are standardized afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normlab.data import Dataset, augment
from normlab.errors import UsageError, targets
from normlab.models.given import given
from normlab.study.axes import is_own_augmentation

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
_IMAGES = 4  # that a function is tried on


def augmentation_named(setting: str) -> Augmentation:
    """What a cell's setting does to a batch. Raises UsageError for a function that is not there or cannot be called."""
    if not is_own_augmentation(setting):
        names = setting.split(",")
        return lambda images, generator: augment(images, generator, crop="crop" in names, flip="flip" in names)
    label = f"augment {setting!r}"
    found = given(setting) or targets.load(setting, "augment")
    if isinstance(found, type) or not callable(found):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UsageError(
            f"{label}: this is {kind}; expected a function of images, or an object that is called with one"
        )
    whole = _takes_batches(found)

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        torch.manual_seed(generator.initial_seed())
        try:
            changed: list[Any] = [found(images, generator)] if whole else [found(image) for image in images]
        except Exception as error:
            came = tuple(images.shape if whole else images.shape[1:])
            raise UsageError(f"{label} raised {type(error).__name__} for images {came}, uint8: {error}") from error
        for result in changed:
            _check(label, result, images if whole else images[0])
        return changed[0] if whole else torch.stack(changed)

    return change


def try_augmentation(setting: str, dataset: Dataset) -> None:
    """Change a few training images as a setting says. Raises UsageError where a function of the user's own cannot."""
    images = torch.tensor(dataset.train.images[:_IMAGES])
    with torch.random.fork_rng(devices=[]):
        augmentation_named(setting)(images, torch.Generator().manual_seed(0))


def _takes_batches(function: Callable[..., Any]) -> bool:
    """Whether it is called with a batch and a generator: it has two arguments without defaults."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(a.kind in kinds and a.default is a.empty for a in arguments) == 2


def _check(label: str, result: Any, given: Tensor) -> None:
    if isinstance(result, Tensor) and result.dtype == torch.uint8 and result.shape == given.shape:
        return
    came = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    raise UsageError(
        f"{label} returned {came}; expected torch.uint8 {tuple(given.shape)}: images keep their size, and are scaled "
        "and standardized afterwards, so leave out what does that"
    )
