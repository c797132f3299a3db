"""Augmentation and standardization of a batch at once, on the batch's own device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normlab.data._send import send
from normlab.errors import UsageError

if TYPE_CHECKING:
    import torch


def augment(images: torch.Tensor, generator: torch.Generator, *, crop: bool = True, flip: bool = True) -> torch.Tensor:
    """Random crop after zero padding, and random horizontal flip, one draw per image.

    `images` is uint8 (N, C, H, W); so is the result. The padding is H // 8 rows and W // 8
    columns on each side: 4 for 32 x 32, as in He et al. (2016). `generator` is a CPU generator; every call draws
    the same amount from it whichever of `crop` and `flip` is on, and the result does not depend on the device.

    Raises UsageError for images of another type or rank and for a generator on another device.
    """
    import torch
    from torch.nn.functional import pad

    _check_images(images)
    if generator.device.type != "cpu":
        raise UsageError(f"generator is on {generator.device}; expected a CPU generator, so that devices agree")
    count, _, height, width = images.shape
    up, left = height // 8, width // 8
    rows = torch.randint(2 * up + 1, (count,), generator=generator)
    columns = torch.randint(2 * left + 1, (count,), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator, dtype=torch.bool)
    rows, columns, mirrored = send(torch.stack((rows, columns, mirrored)), images.device)
    if crop:
        # every possible crop, (N, C, 2 up + 1, 2 left + 1, H, W), as a view of the padded images
        crops = pad(images, (left, left, up, up)).unfold(2, height, 1).unfold(3, width, 1)
        images = crops[torch.arange(count, device=images.device), :, rows, columns]
    if flip:
        images = torch.where(mirrored.bool()[:, None, None, None], images.flip(3), images)
    return images


class Standardizer:
    """(images / 255 - mean) / std, per channel, for many batches: what they share is computed once.

    `mean` and `std` hold C numbers, arrays or tensors, of images / 255; `device` is where the batches lie. Called with
    images, uint8 (N, C, H, W), it returns float32 on that device and in their memory format. Raises UsageError where
    types or sizes disagree.
    """

    def __init__(self, mean: Any, std: Any, device: torch.device | str = "cpu") -> None:
        import torch

        mean, std = (torch.as_tensor(value, dtype=torch.float64, device="cpu").flatten() for value in (mean, std))
        if len(mean) != len(std):
            raise UsageError(f"mean has {len(mean)} and std {len(std)} values; expected one per channel")
        if not bool((std > 0).all()):
            raise UsageError(f"std is {std.tolist()}; expected positive numbers")
        self._scale = (1 / (255 * std)).float().to(device)[:, None, None]
        self._shift = (-mean / std).float().to(device)[:, None, None]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        _check_images(images)
        if len(self._scale) != images.shape[1]:
            count = len(self._scale)
            raise UsageError(f"mean has {count} and std {count} values; expected one per channel: {images.shape[1]}")
        return images.float().mul_(self._scale).add_(self._shift)


def standardize(images: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """`Standardizer` for one batch."""
    _check_images(images)
    return Standardizer(mean, std, images.device)(images)


def _check_images(images: torch.Tensor) -> None:
    import torch

    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UsageError(f"images are {images.dtype} {tuple(images.shape)}; expected torch.uint8 (N, C, H, W)")
