"""Augmentation and standardization of a batch at once, on whatever device the batch lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    rows, columns, mirrored = (drawn.to(images.device) for drawn in (rows, columns, mirrored))
    if crop:
        # every crop there is, (N, C, 2 up + 1, 2 left + 1, H, W), as a view of the padded images
        crops = pad(images, (left, left, up, up)).unfold(2, height, 1).unfold(3, width, 1)
        images = crops[torch.arange(count, device=images.device), :, rows, columns]
    if flip:
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def standardize(images: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """(images / 255 - mean) / std, per channel.

    `images` is uint8 (N, C, H, W); `mean` and `std` hold C numbers, arrays or tensors, of images / 255. The result
    is float32 on the images' device and in their memory format. Raises UsageError where types or sizes disagree.
    """
    import torch

    _check_images(images)
    mean, std = (torch.as_tensor(value, dtype=torch.float64, device="cpu").flatten() for value in (mean, std))
    if not (len(mean) == len(std) == images.shape[1]):
        raise UsageError(f"mean has {len(mean)} and std {len(std)} values; expected one per channel: {images.shape[1]}")
    if not bool((std > 0).all()):
        raise UsageError(f"std is {std.tolist()}; expected positive numbers")
    scale = (1 / (255 * std)).float().to(images.device)[:, None, None]
    shift = (-mean / std).float().to(images.device)[:, None, None]
    return images.float().mul_(scale).add_(shift)


def _check_images(images: torch.Tensor) -> None:
    import torch

    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UsageError(f"images are {images.dtype} {tuple(images.shape)}; expected torch.uint8 (N, C, H, W)")
