"""Images with a heat map over them, as small data: addresses."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96  # pixels
# black, violet, red, orange, pale yellow: dark to bright in every eye
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)


def picture(image: NDArray[np.uint8], heat: NDArray[np.float32] | None = None) -> str:
    """A uint8 image (C, H, W), C = 1 or 3, as a WebP of `SIDE` pixels; with `heat` (H, W) in [0, 1] laid over it.

    Where heat is low the image is dimmed, where it is high the colour of the heat covers it.
    """
    rgb = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image[:3]
    pixels = np.moveaxis(rgb, 0, 2)
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    large = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC), np.float32)
    if heat is not None:
        stretched = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        strength = np.clip(np.asarray(stretched, np.float32), 0, 1)
        cover = (0.25 + 0.35 * strength)[..., None]
        large = (1 - cover) * large + cover * _colours(strength)
    file = io.BytesIO()
    Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(file, "WEBP", quality=72, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _colours(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    places = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(strength, places, _HEAT[:, channel]) for channel in range(3)], axis=-1).astype(
        np.float32
    )
