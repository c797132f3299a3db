"""The galleries of `normlab.explain.questions` as one picture for each class."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from normlab.explain.pictures import SIDE
from normlab.report.theme import LIGHT

_GAP = 8  # pixels between tiles
_FRAME = 3
_LINE = 15  # of text, of which a tile has two below it
_SIZE = 12
_COLORS = {True: LIGHT["c3"], False: LIGHT["c10"]}  # of the frames around right and wrong answers


def draw(galleries: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """A PNG for each class: a row for each image, first the ones that most norms get right.

    The image comes first, then every norm's map in a green frame if its answer is right, in a red one if it is wrong,
    and that answer below.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for gallery in galleries:
        rows.setdefault(gallery["class"], []).extend(gallery["images"])
    return {name: _png(images) for name, images in rows.items()}


def as_png(image: NDArray[np.float64]) -> bytes:
    """A picture (3, height, width) from 0 to 255 as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def _png(images: Sequence[Mapping[str, Any]]) -> bytes:
    norms = [answer["norm"] for answer in images[0]["maps"]]
    step, tall = SIDE + 2 * _FRAME + _GAP, SIDE + 2 * _FRAME + 2 * _LINE + _GAP
    sheet = Image.new("RGB", ((1 + len(norms)) * step - _GAP, _LINE + _GAP // 2 + len(images) * tall), LIGHT["paper"])
    pen = ImageDraw.Draw(sheet)
    for column, norm in enumerate(norms, start=1):
        _write(pen, column * step, 0, norm, LIGHT["ink"])
    for row, image in enumerate(images):
        top = _LINE + _GAP // 2 + row * tall
        _paste(sheet, image["picture"], 0, top)
        _write(pen, 0, top + SIDE + 2 * _FRAME, image["truth"], LIGHT["ink"])
        _write(pen, 0, top + SIDE + 2 * _FRAME + _LINE, f"image {image['index']}", LIGHT["soft"])
        for column, answer in enumerate(image["maps"], start=1):
            left, color = column * step, _COLORS[answer["predicted"] == image["truth"]]
            corner = (left + SIDE + 2 * _FRAME - 1, top + SIDE + 2 * _FRAME - 1)
            pen.rectangle((left, top, *corner), outline=color, width=_FRAME)
            _paste(sheet, answer["picture"], left, top)
            _write(pen, left, top + SIDE + 2 * _FRAME, answer["predicted"], color)
            _write(pen, left, top + SIDE + 2 * _FRAME + _LINE, f"{100 * answer['confidence']:.0f} %", LIGHT["soft"])
    file = io.BytesIO()
    sheet.quantize(256).save(file, "PNG", optimize=True)  # a third of the size, and no eye sees it
    return file.getvalue()


def _paste(sheet: Image.Image, address: str, left: int, top: int) -> None:
    tile = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    sheet.paste(tile, (left + _FRAME + (SIDE - tile.width) // 2, top + _FRAME + (SIDE - tile.height) // 2))


def _write(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, color: str) -> None:
    """A line of text, shortened to the width of a tile."""
    font = ImageFont.load_default(_SIZE)
    shown = text = " ".join(text.split())
    while pen.textlength(shown, font) > SIDE + 2 * _FRAME:
        text = text[:-1]
        shown = f"{text}…"
    pen.text((left, top), shown, fill=color, font=font)
