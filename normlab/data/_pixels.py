"""One encoded image to pixels: header, decoding, orientation, resizing; nothing is decoded before its size is known."""

from __future__ import annotations

import contextlib
import io
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from normlab.data._dataset import SIXTEEN_BITS, Levels, Pixels
from normlab.data._source import Encoded
from normlab.errors import DataError, require

if TYPE_CHECKING:
    from PIL import Image

# formats whose decoders run no other program; Pillow would else also try EPS, PDF and forty more
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
MAX_PIXELS = 2**30 // 12  # 89 million, where Pillow begins to speak of a decompression bomb

_LARGE = 2**24  # pixels of an image that is decoded alone: several at once would take more memory than many have
_ALONE = threading.Lock()

_ORIENTATION = 0x0112
_GRAY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Header:
    """Height and width after the camera's orientation is applied, and whether it is gray and has 16-bit pixels."""

    height: int
    width: int
    gray: bool
    deep: bool = False


def read_header(data: Encoded) -> Header:
    """The header of an encoded image. Raises the decoder's exception if the image cannot be used."""
    with _open(data) as image:
        width, height = image.size
        if _is_turned(image):
            width, height = height, width
        deep = _sixteen_bit(image)
        return Header(height, width, image.mode in _GRAY or deep, deep)


def extremes(data: Encoded) -> tuple[int, int]:
    """The lowest and the highest pixel of a 16-bit image. Raises the decoder's exception if it cannot be used."""
    with _open(data) as image:
        pixels = np.asarray(image)
        return int(pixels.min()), int(pixels.max())


def decode(data: Encoded, shape: tuple[int, int, int], levels: Levels = SIXTEEN_BITS) -> Pixels:
    """Pixels, uint8 (C, H, W): oriented, gray or RGB, cropped about the centre to the aspect of H x W, resized.

    Of 16-bit images, `levels` are the pixels that become 0 and 255.
    """
    channels, height, width = shape
    with _open(data) as image, _ALONE if image.width * image.height > _LARGE else contextlib.nullcontext():
        if image.size != ((height, width) if _is_turned(image) else (width, height)):
            # a JPEG decoder can halve the image on the way, leaving at least twice the pixels asked for
            image.draft(None, (2 * max(height, width),) * 2)
        return fit(_oriented(_gray_or_rgb(image, channels, levels), image), height, width)


def fit(image: Image.Image, height: int, width: int) -> Pixels:
    """An L or RGB image as uint8 (C, height, width): the largest centred box of that aspect, resized bilinearly."""
    if image.size != (width, height):
        from PIL import Image

        scale = min(image.width / width, image.height / height)
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        box = (left, top, left + scale * width, top + scale * height)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels: Pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def fit_array(pixels: Pixels, height: int, width: int) -> Pixels:
    """`fit` for pixels that are decoded already, uint8 (C, H, W) with 1 or 3 channels."""
    require("resizing images", "study", "PIL")
    from PIL import Image

    return fit(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), height, width)


def _open(data: Encoded) -> Image.Image:
    require("decoding images", "study", "PIL")
    from PIL import Image, UnidentifiedImageError

    if isinstance(data, Exception):
        raise data
    if not data:
        raise DataError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"not an image that can be read ({', '.join(FORMATS)})") from None
    pixels = image.width * image.height
    if pixels > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        raise DataError(f"{image.width} x {image.height} pixels, a decompression bomb")
    if image.format == "TIFF":
        image.load()  # Pillow turns a TIFF upright itself, and only then do size and orientation agree
    return image


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)


def _oriented(image: Image.Image, original: Image.Image) -> Image.Image:
    from PIL import Image

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(original.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _eight_bit(pixels: NDArray[np.int64], low: int, high: int) -> Pixels:
    """Pixels from `low` to `high` in 256 steps of one size."""
    return ((pixels.clip(low, high) - low) * 256 // (high - low + 1)).astype(np.uint8)


def _sixteen_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _gray_or_rgb(image: Image.Image, channels: int, levels: Levels) -> Image.Image:
    from PIL import Image

    if _sixteen_bit(image):
        image = Image.fromarray(_eight_bit(np.asarray(image).astype(np.int64), *levels))
    elif image.mode in ("I", "F"):
        raise DataError("32-bit pixels; save it with 8 or 16 bits per channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
