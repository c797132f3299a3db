"""An unpickler for plain containers and NumPy arrays that builds no other object and calls no foreign code."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from normlab.errors import DataError

_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")


def load_plain(data: bytes, where: str) -> dict[str, Any]:
    """The pickled dictionary in `data` with its keys as text, from Python 2 or 3.

    Stand-ins take the place of everything the pickle asks for; they only collect an array's type, shape and bytes;
    asking for anything else, or for anything malformed, raises DataError with `where` in the message.
    """
    stand_ins, finished = _make_stand_ins()

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in stand_ins:
                raise DataError(
                    f"{where} is refused: its pickle asks for {module + '.' + name!r}, and only NumPy arrays and "
                    "plain containers are allowed. The file may be malicious; get it from its official source"
                )
            return stand_ins[module, name]

    try:
        # The scan checks every declared length against the bytes that are there. A memo number beyond the file's
        # size would make the unpickler reserve that much memory.
        for op, argument, _ in pickletools.genops(data):
            if op.name == "LONG_BINPUT" and int(argument or 0) > len(data):
                raise ValueError("impossible memo number")
        loaded = Plain(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"a {type(loaded).__name__} instead of a dictionary")
        return {_text(key): finished(value) for key, value in loaded.items()}
    except DataError:
        raise
    except Exception as error:  # a hostile stream of opcodes can make the unpickler raise almost anything
        raise DataError(f"{where} is not a pickle that can be read: {error or type(error).__name__}") from error


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    raise ValueError(f"a {type(value).__name__} where text belongs")


def _make_stand_ins() -> tuple[dict[tuple[str, str], Any], Callable[[Any], Any]]:
    """What a pickled array refers to, made anew for each pickle because a pickle may set attributes on them."""

    class Dtype:
        def __init__(self, code: Any, *_: Any) -> None:
            self.code = _text(code)

        def __setstate__(self, state: Any) -> None:
            self.code = _text(state[1]).replace("|", "") + self.code.lstrip("<>|=")

    class Array:
        value: Any = None

        def __setstate__(self, state: Any) -> None:
            _, shape, kind, fortran, raw = state
            self.value = array(raw, kind, shape, "F" if fortran else "C")

    def array(raw: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
        if not (isinstance(kind, Dtype) and _NUMBER.fullmatch(kind.code)):
            raise ValueError("an array of something else than numbers")
        if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
            raise ValueError(f"the array shape {shape!r}")
        return np.frombuffer(raw, np.dtype(kind.code)).reshape(shape, order=order)

    def from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> Any:
        made = Array()
        made.value = array(raw, kind, shape, order)
        return made

    def scalar(kind: Any, raw: Any) -> Any:
        return array(raw, kind, ()).item()

    def encode(text: Any, codec: Any) -> bytes:
        if codec not in ("latin1", b"latin1"):
            raise ValueError(f"the codec {codec!r}")
        return str(text).encode("latin1")

    def finished(value: Any) -> Any:
        return value.value if isinstance(value, Array) else value

    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): encode,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = lambda *_: Array()
        names[f"{core}.multiarray", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = from_buffer
    return names, finished
