"""Makes small image sets in every layout that the readers take, from one array of images."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def images(count: int, size: tuple[int, int] = (8, 8), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random uint8 (count, C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, *size), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """One (C, H, W) image as the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(out, kind, **options)
    return out.getvalue()


def write_folder(
    root: Path, classes: Iterable[str] = ("cat", "dog"), each: int = 10, seed: int = 0, **options: object
) -> dict[str, np.ndarray]:
    """`each` PNG files per class under `root`; answers the pixels by relative name."""
    written = {}
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images(each, seed=1000 * seed + k, **options)):
            (root / name / f"{i:03}.png").write_bytes(encoded(pixels))
            written[f"{name}/{i:03}.png"] = pixels
    return written


class Python2Pickle:
    """Writes protocol 2 as Python 2 did: byte strings for text and for the raw bytes of arrays."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def dump(self, value: object) -> bytes:
        self._put(value)
        return bytes(self.out + b".")

    def _put(self, value: object) -> None:
        if isinstance(value, dict):
            self.out += b"}("
            for key, item in value.items():
                self._put(key)
                self._put(item)
            self.out += b"u"
        elif isinstance(value, list):
            self.out += b"]("
            for item in value:
                self._put(item)
            self.out += b"e"
        elif isinstance(value, int):
            self.out += b"J" + struct.pack("<i", value)
        elif isinstance(value, (str, bytes)):
            raw = value.encode() if isinstance(value, str) else value
            self.out += b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw
        elif isinstance(value, np.ndarray):
            self._array(value)
        else:
            raise TypeError(type(value))

    def _array(self, value: np.ndarray) -> None:
        # _reconstruct(ndarray, (0,), 'b'), then its state (version, shape, dtype, is_fortran, bytes)
        self.out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        self.out += b"(K\x01("
        for n in value.shape:
            self._put(n)
        self.out += b"t"
        # dtype('u1', 0, 1) with the state (3, '|', None, None, None, -1, -1, 0)
        self.out += b"cnumpy\ndtype\nU\x02" + value.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
        self.out += b"(K\x03U\x01" + value.dtype.str[:1].encode() + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
        self.out += b"\x89"
        self._put(value.tobytes())
        self.out += b"tb"
