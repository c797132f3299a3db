"""Single images for a prediction: files, arrays and Pillow's images as the pixels that a network was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normlab.data._dataset import SIXTEEN_BITS, Levels, Pixels
from normlab.data._pixels import SUFFIXES, decode, fit_array
from normlab.data._source import listing
from normlab.errors import DataError, UsageError

Shape = tuple[int, int, int]


def as_pixels(images: Any, shape: Shape, levels: Levels = SIXTEEN_BITS) -> list[tuple[str, Pixels]]:
    """(source, uint8 (C, H, W)) of each image: of files by their path, of arrays by their place.

    `images` is a path, a folder of images, an array of one or several, or a list of these; `shape` is (C, H, W) of the
    result, and `levels` are the pixels of 16-bit files that become 0 and 255. Raises UsageError for what is no image,
    DataError with every file that cannot be read.
    """
    found: list[tuple[str, Pixels]] = []
    bad: list[str] = []
    for item in _iterate(images):
        if isinstance(item, Path):
            try:
                found.append((str(item), decode(item.read_bytes(), shape, levels)))
            except OSError as error:
                bad.append(f"{str(item)!r}: {error.strerror or error}")
            except Exception as error:  # a decoder may raise almost anything on a damaged file
                bad.append(f"{str(item)!r}: {error}")
        else:
            found += [(str(len(found) + i), fitted(image, shape)) for i, image in enumerate(as_planes(item))]
    if bad:
        raise DataError(f"{len(bad)} of {len(bad) + len(found)} images cannot be used" + listing(bad, len(bad)))
    return found


def fitted(image: Pixels, shape: Shape) -> Pixels:
    """An image, uint8 (C, H, W), with the channels and the size of `shape`."""
    channels, height, width = shape
    if len(image) != channels:
        if len(image) == 1:
            image = np.repeat(image, channels, axis=0)
        elif channels == 1:  # luma as Pillow has it
            weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]
            image = ((image[:3] * weights).sum(0, dtype=np.uint32) + 0x8000 >> 16).astype(np.uint8)[None]
        else:
            image = image[:channels]
    return image if image.shape[1:] == (height, width) else fit_array(image, height, width)


def _iterate(images: Any) -> Iterator[Any]:
    """Files as paths, anything else as it is."""
    if isinstance(images, str | os.PathLike):
        path = Path(images).expanduser()
        if not path.is_dir():
            yield path
            return
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise UsageError(f"{str(path)!r} is a folder without an image ({', '.join(SUFFIXES)})")
        yield from inside
    elif isinstance(images, Sequence) and not _is_numbers(images):
        for image in images:
            yield from _iterate(image)
    else:
        yield images


def _is_numbers(images: Sequence[Any]) -> bool:
    """Whether a list is an image written out."""
    while isinstance(images, Sequence) and not isinstance(images, str) and images:
        images = images[0]
    return isinstance(images, int | float)


def as_planes(image: Any) -> Pixels:
    """An array of one image or several as uint8 (N, C, H, W)."""
    what = type(image).__name__
    if hasattr(image, "detach"):
        image = image.detach().cpu()
    try:
        pixels = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"an image is {what}; expected a path or an array ({error})") from None
    if pixels.ndim == 3 and pixels.shape[0] not in (1, 3) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels[:, None]  # several gray ones
    elif pixels.ndim in (2, 3):
        pixels = pixels[None] if pixels.ndim == 3 else pixels[None, None]
    if pixels.ndim == 4 and pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3, 4):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3, 4) or 0 in pixels.shape:
        raise UsageError(
            f"an image is {what} of shape {np.shape(image)}; expected a path, or an array (H, W), (H, W, C) or "
            "(C, H, W) with 1 or 3 channels, or several of them"
        )
    if pixels.dtype == np.uint8:
        return pixels[:, :3]
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        whole: Pixels = np.rint(pixels[:, :3] * 255).astype(np.uint8)
        return whole
    raise UsageError(f"an image is {pixels.dtype} from {pixels.min()} to {pixels.max()}; expected uint8, or 0 to 1")
