"""Augmentation against a loop over images, and standardization against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normlab.data import augment, standardize
from normlab.errors import UsageError


def batch(count=64, channels=3, height=32, width=32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def by_hand(images: torch.Tensor, seed: int, crop: bool, flip: bool) -> torch.Tensor:
    """The same draws, one image at a time."""
    count, _, height, width = images.shape
    up, left = height // 8, width // 8
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(2 * up + 1, (count,), generator=generator)
    columns = torch.randint(2 * left + 1, (count,), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator, dtype=torch.bool)
    out = images.numpy().copy()
    for i in range(count):
        if crop:
            padded = np.pad(out[i], ((0, 0), (up, up), (left, left)))
            out[i] = padded[:, rows[i] : rows[i] + height, columns[i] : columns[i] + width]
        if flip and mirrored[i]:
            out[i] = out[i, :, :, ::-1]
    return torch.from_numpy(out)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (9, 1, 8, 8), (5, 3, 20, 33), (3, 3, 4, 4), (0, 3, 32, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_augment_does_what_a_loop_does(crop, flip, shape, layout):
    images = batch(*shape)
    given = images.contiguous(memory_format=layout)
    out = augment(given, torch.Generator().manual_seed(3), crop=crop, flip=flip)
    assert out.dtype == torch.uint8
    assert torch.equal(out, by_hand(images, 3, crop, flip))
    assert torch.equal(given, images)  # the input stays as it was


def test_every_offset_and_both_directions_occur():
    marked = torch.zeros(4000, 1, 16, 16, dtype=torch.uint8)
    marked[:, :, 8, 5] = 255
    out = augment(marked, torch.Generator().manual_seed(0))[:, 0].flatten(1)
    places = {divmod(int(at), 16) for at in out.argmax(1)}
    assert places == {(row, column) for row in range(6, 11) for column in (*range(3, 8), *range(8, 13))}


def test_the_generator_alone_decides():
    images = batch()
    torch.manual_seed(1)
    first = augment(images, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(6)))


def test_every_call_draws_the_same_amount():
    states = []
    for crop in (True, False):
        generator = torch.Generator().manual_seed(5)
        augment(batch(), generator, crop=crop, flip=not crop)
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_crops():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = batch()
    there = augment(images.cuda(), torch.Generator().manual_seed(5))
    assert there.is_cuda
    assert torch.equal(there.cpu(), augment(images, torch.Generator().manual_seed(5)))
    with pytest.raises(UsageError, match="expected a CPU generator"):
        augment(images.cuda(), torch.Generator("cuda"))


@pytest.mark.parametrize("kind", [np.float32, list, torch.tensor])
def test_standardize_against_float64(kind):
    images = batch(channels=2)
    mean, std = [0.25, 0.5], [0.2, 0.001]
    given = [np.array(v, kind) if kind is np.float32 else kind(v) for v in (mean, std)]
    out = standardize(images, *given)
    assert out.dtype == torch.float32
    expected = (images.numpy() / 255 - np.reshape(mean, (2, 1, 1))) / np.reshape(std, (2, 1, 1))
    np.testing.assert_allclose(out.numpy(), expected, rtol=2e-6, atol=2e-4)


def test_standardize_keeps_the_memory_format():
    images = batch().contiguous(memory_format=torch.channels_last)
    out = standardize(images, [0.5] * 3, [0.2] * 3)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_wrong_images(wrong):
    with pytest.raises(UsageError, match=r"expected torch.uint8 \(N, C, H, W\)"):
        augment(wrong, torch.Generator())
    with pytest.raises(UsageError, match=r"expected torch.uint8 \(N, C, H, W\)"):
        standardize(wrong, [0.5] * 3, [0.2] * 3)


def test_wrong_statistics():
    with pytest.raises(UsageError, match="mean has 1 and std 1 values; expected one per channel: 3"):
        standardize(batch(), [0.5], [0.2])
    with pytest.raises(UsageError, match="expected positive numbers"):
        standardize(batch(), [0.5] * 3, [0.2, 0.0, 0.2])
