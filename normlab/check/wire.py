"""What goes between a check and the process that holds its target: JSON, with arrays as bytes behind it.

Nothing of it is code: whatever the other side sends, it is numbers, text and arrays.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO

import numpy as np

MOST_BYTES = 1 << 28  # of a message; the largest input that is tried has a tenth of it
_LENGTH = struct.Struct(">Q")
_KINDS = "fiub"


class Broken(ValueError):
    """A message that is none."""


def pack(value: Any) -> bytes:
    """A message with its length before it. Takes numbers, text, None, arrays, and containers of them."""
    buffers: list[bytes] = []
    text = json.dumps(_encode(value, buffers)).encode()
    frame = b"".join((_LENGTH.pack(len(text)), text, *buffers))
    return _LENGTH.pack(len(frame)) + frame


def _encode(value: Any, buffers: list[bytes]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"an array of {value.dtype}; expected real numbers")
        buffers.append(np.ascontiguousarray(value).tobytes())
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {"dict": [[_encode(k, buffers), _encode(v, buffers)] for k, v in value.items()]}
    for name, kind in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kind):
            return {name: [_encode(v, buffers) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def unpack(frame: bytes) -> Any:
    """The value of a message; raises Broken for anything that `pack` does not write."""
    try:
        (length,) = _LENGTH.unpack_from(frame)
        begin = _LENGTH.size + length
        value, end = _decode(json.loads(frame[_LENGTH.size : begin]), frame, begin)
    except (ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError, OverflowError) as e:
        raise Broken(str(e)) from e
    if end != len(frame):
        raise Broken("the lengths of a message do not agree")
    return value


def _decode(plain: Any, frame: bytes, at: int) -> tuple[Any, int]:
    if not isinstance(plain, dict):
        return plain, at
    ((kind, held),) = plain.items()
    if kind == "array":
        dtype, shape = np.dtype(str(held[0])), tuple(int(n) for n in held[1])
        count = math.prod(shape)
        if dtype.kind not in _KINDS or min(shape, default=0) < 0:
            raise Broken(f"an array of {dtype} and shape {shape}")
        array = np.frombuffer(frame, dtype, count, at) if count else np.empty(0, dtype)
        return array.reshape(shape).copy(), at + count * dtype.itemsize
    made = []
    for item in held:
        if kind == "dict":
            key, at = _decode(item[0], frame, at)
            value, at = _decode(item[1], frame, at)
            made.append((key, value))
        else:
            value, at = _decode(item, frame, at)
            made.append(value)
    return {"dict": dict, "list": list, "tuple": tuple, "set": frozenset}[kind](made), at


def read(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end of the stream. Raises Broken for one that is too long."""
    head = _exactly(stream, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MOST_BYTES:
        raise Broken(f"a message of {length:,} bytes")
    return _exactly(stream, length)


def _exactly(stream: BinaryIO, size: int) -> bytes | None:
    parts = []
    while size:
        part = stream.read(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
