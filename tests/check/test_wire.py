"""Messages between a check and the target's process: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from normlab.check import wire

PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
ARRAYS = arrays.arrays(
    st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.bool_]),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
)
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def came_back(value: Any) -> Any:
    frame = wire.read(io.BytesIO(wire.pack(value)))
    assert frame is not None
    return wire.unpack(frame)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert same(value, came_back(value))


# an OverflowError ended the thread that reads, and the target was said to hang
def test_a_size_beyond_all_memory_is_no_message() -> None:
    text = b'{"array": ["<f8", [' + b"9" * 30 + b"]]}"
    with pytest.raises(wire.Broken):
        wire.unpack(len(text).to_bytes(8, "big") + text)


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    try:
        frame = wire.read(io.BytesIO(noise))
        if frame is not None:
            wire.unpack(frame)
    except wire.Broken:
        pass


def test_what_is_not_plain_is_refused() -> None:
    for value in (object(), np.array([object()]), {"a": {1, object()}}):
        with pytest.raises(TypeError):
            wire.pack(value)
    with pytest.raises(wire.Broken, match="bytes"):
        wire.read(io.BytesIO((wire.MOST_BYTES + 1).to_bytes(8, "big")))
    nested = b"[" * 100_000
    with pytest.raises(wire.Broken):
        wire.unpack(len(nested).to_bytes(8, "big") + nested)
