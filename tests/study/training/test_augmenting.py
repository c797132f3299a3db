"""Augmentation by functions of the user's own: batches, single images, what is refused, and what a cell is known by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.models.given import give
from normlab.study.axes import augmentation
from normlab.study.source import identity
from normlab.study.spec import make_spec
from normlab.study.training.augmenting import augmentation_named, try_augmentation
from normlab.study.training.cell import Training
from tests.study.conftest import make_cell

CODE = """
import torch

def darker(images, generator):
    shift = torch.randint(0, 50, (len(images), 1, 1, 1), generator=generator, dtype=torch.uint8)
    return images - torch.minimum(images, shift)

def halved(image):
    return image[:, ::2]

def scaled(image):
    return image / 255

def breaks(images, generator):
    raise ValueError("no such thing")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "changes.py"
    path.write_text(CODE)
    return path


class Turned(nn.Module):
    """As a transform of torchvision: it is called with one image and draws from torch's generator."""

    def forward(self, *inputs: Tensor) -> Tensor:
        (image,) = inputs
        return image.roll(int(torch.randint(0, 7, ())), -1)


def changed(setting: str, images: Tensor, seed: int = 0) -> Tensor:
    return augmentation_named(setting)(images, torch.Generator().manual_seed(seed))


def test_a_function_of_batches(own: Path, dataset: Dataset) -> None:
    images = torch.tensor(dataset.train.images[:8])
    setting = augmentation(f" {own}:darker ")
    assert setting == f"{own}:darker"
    one, again, other = (changed(setting, images, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert bool((one <= images).all())


def test_a_transform_of_single_images(dataset: Dataset) -> None:
    images = torch.tensor(dataset.train.images[:8])
    setting = augmentation(give(Turned(), "augment"))
    assert setting.startswith("Turned@")
    torch.manual_seed(5)
    one = changed(setting, images)
    torch.manual_seed(6)
    assert torch.equal(one, changed(setting, images))
    shifts = [next(k for k in range(7) if torch.equal(a.roll(k, -1), b)) for a, b in zip(images, one, strict=True)]
    assert len(set(shifts)) > 1  # each image by itself


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_transforms_of_torchvision_itself(dataset: Dataset, version: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms" + (".v2" if version == "v2" else ""))
    size = dataset.size[0]
    images = torch.tensor(dataset.train.images[:8])
    transform = transforms.Compose([transforms.RandomCrop(size, padding=2), transforms.RandomHorizontalFlip()])
    setting = augmentation(give(transform, "augment"))
    assert torch.equal(changed(setting, images, 0), changed(setting, images, 0))
    assert not torch.equal(changed(setting, images, 0), changed(setting, images, 1))
    with pytest.raises(UsageError, match="images keep their size"):
        changed(augmentation(give(transforms.Resize(size // 2), "augment")), images)


def test_training_uses_it_and_the_rest_stays(own: Path, dataset: Dataset) -> None:
    plain, none, dark = (
        Training(make_cell(augment=setting, dropout=0.5), dataset) for setting in ("none", "none", f"{own}:darker")
    )
    for training in (plain, none, dark):
        training.step(np.arange(8), 1)
    assert plain.progress.loss_sum == none.progress.loss_sum != dark.progress.loss_sum


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("halved", r"returned torch.uint8 \(1, .*; expected torch.uint8 \(1, .*: images keep their size"),
        ("scaled", r"returned torch.float32 .*; expected torch.uint8"),
        ("breaks", r"raised ValueError for images \(4, .*\), uint8: no such thing"),
        ("number", r"this is a int; expected a function of images"),
        ("nothing", r"has no 'nothing'"),
    ],
)
def test_what_cannot_be_used_is_told_before_training(own: Path, dataset: Dataset, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        try_augmentation(f"{own}:{name}", dataset)


def test_other_code_is_other_cells(own: Path, dataset: Dataset) -> None:
    spec = make_spec({"augment": [f"{own}:darker", "crop,flip"], "norms": "bn"})
    assert [cell.augment for cell in spec.cells(100)] == [f"{own}:darker", "crop,flip"]
    before = identity(dataset, spec)
    own.write_text(CODE + "# another\n")
    assert identity(dataset, spec) != before != dataset.hash


def test_what_is_no_function_is_named(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="augment is 5; expected a name, or a function of images"):
        give(5, "augment")
    with pytest.raises(UsageError, match="'spin' is not known; expected one of: crop, flip"):
        make_spec({"augment": "spin"})
