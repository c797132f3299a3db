"""What is timed: a norm in a form on a shape, the bytes it must move, and the words it is asked for with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from normlab.errors import UsageError
from normlab.norms import norm_names, parse

NORMS = tuple(name for name in norm_names() if parse(name)[0].stock)  # there is something to set beside them
POSITION_NORMS = ("layernorm", "rmsnorm", "channelnorm")  # statistics per position
FORMS = ("plain", "act", "residual")
LAYOUTS = ("channels_first", "channels_last")
ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # bytes
# residual networks on images of 32 x 32 (batch 128) and of 224 x 224; the last has next to no work in it
TINY = (2, 64, 2, 2)
SHAPES = (
    (128, 16, 32, 32),
    (128, 32, 16, 16),
    (128, 64, 8, 8),
    (32, 64, 56, 56),
    (32, 128, 28, 28),
    (64, 256, 14, 14),
    TINY,
)


@dataclass(frozen=True)
class Work:
    """One row: forward and backward of y = norm(x), act(norm(x)) or act(norm(x) + residual).

    `norm` is "bn", "in", "bin", "ln", "gn", "gn:groups=8", or of statistics per position "layernorm" and "rmsnorm",
    over the last dimension of any shape, and "channelnorm", over the channels; `act` None or a name; `shape`
    (N, C, *). `count` says how often a model does it.
    """

    norm: str
    shape: tuple[int, ...]
    layout: str = "channels_first"
    residual: bool = False
    act: str | None = None
    dtype: str = "float32"
    count: int = 1

    @property
    def form(self) -> str:
        """Norm, norm + relu, norm + res + relu."""
        return " + ".join(["norm", *(["res"] if self.residual else []), *([self.act] if self.act else [])])

    @property
    def name(self) -> str:
        """The row in a few words."""
        return f"{self.norm}, {self.form}, {size(self.shape)}, {self.layout}"

    @property
    def channels(self) -> int:
        """Channels; for "layernorm" and "rmsnorm" the last dimension."""
        return self.shape[-1] if self.norm in ("layernorm", "rmsnorm") else self.shape[1]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of x."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @property
    def bytes_moved(self) -> int:
        """The fewest bytes that forward and backward can move to and from memory, with nothing left in cache.

        Forward reads x (and the residual) and writes y; backward reads x and dy and writes dx. With a residual and an
        activation it also writes the residual's gradient, and must know where the activation bent: one bit an
        element, written and read, for relu and its leaky kin, the residual once more for the smooth ones. Without an
        activation the residual's gradient is dy itself.
        """
        tensors, bits = 5, 0
        if self.residual:
            tensors += 1
            if self.act in ("relu", "leaky_relu"):
                tensors, bits = tensors + 1, 2
            elif self.act:
                tensors += 2
        return tensors * self.tensor_bytes + bits * math.prod(self.shape) // 8

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what follows from them, for a record."""
        fields = {**asdict(self), "shape": list(self.shape)}
        return {**fields, "form": self.form, "bytes_moved": self.bytes_moved, "tensor_bytes": self.tensor_bytes}


def size(shape: Sequence[int]) -> str:
    """(32, 64, 56, 56) as 32x64x56x56."""
    return "x".join(map(str, shape))


def grid(
    norms: Sequence[str], forms: Sequence[str], shapes: Sequence[tuple[int, ...]], layouts: Sequence[str],
    act: str = "relu", dtype: str = "float32",
) -> list[Work]:  # fmt: skip
    """Every combination that is possible: channels-last needs 4 or 5 dimensions, instances more than one position."""
    return [
        Work(norm, shape, layout, form == "residual", None if form == "plain" else act, dtype)
        for norm, form, shape, layout in product(norms, forms, shapes, layouts)
        if (layout == "channels_first" or (len(shape) in (4, 5) and norm not in ("layernorm", "rmsnorm")))
        and not (math.prod(shape[2:]) == 1 and takes_instances(norm))
    ]


def takes_instances(norm: str) -> bool:
    """Whether a norm has statistics of single planes, which need more than one position."""
    return norm not in POSITION_NORMS and parse(norm)[0].instances


def shape_above(cache_bytes: int, dtype: str) -> tuple[int, ...]:
    """A shape of 64 channels of 112 x 112 whose tensor is larger than the cache."""
    sample = 64 * 112 * 112
    return (cache_bytes // (sample * DTYPES[dtype]) + 1, 64, 112, 112)


def parse_norms(text: str) -> list[str]:
    """ "bn,gn:groups=8" as a list; raises UsageError for a norm that torch has nothing to set beside."""
    norms = _items(text, "--norms")
    grouped = [norm for norm in NORMS if "groups" in parse(norm)[0].options]
    for norm in norms:
        base, _, options = norm.partition(":")
        if base not in (*NORMS, *POSITION_NORMS) or (options and base not in grouped):
            known = ", ".join([*NORMS, *(f"{norm}:groups=G" for norm in grouped), *POSITION_NORMS])
            raise UsageError(f"--norms {norm!r}: torch has no such layer to set beside ours; expected one of: {known}")
        if base not in POSITION_NORMS:
            _, given = parse(norm)
            groups = given.get("groups", 1)
            if set(given) - {"groups"} or not isinstance(groups, int) or groups < 1:
                raise UsageError(f"--norms {norm!r}: expected a number of groups, as in gn:groups=8")
    return norms


def parse_shapes(text: str) -> list[tuple[int, ...]]:
    """ "128x16x32x32,2x64x2x2" as tuples; raises UsageError for anything else."""
    shapes = []
    for item in _items(text, "--shapes"):
        sizes = item.split("x")
        if not 2 <= len(sizes) <= 5 or not all(s.isascii() and s.isdigit() and int(s) > 0 for s in sizes):
            raise UsageError(
                f"--shapes {item!r}: expected 2 to 5 positive sizes N x C x ..., as in 128x16x32x32; several shapes "
                "are separated by commas"
            )
        shapes.append(tuple(map(int, sizes)))
    return shapes


def parse_input(text: str) -> tuple[int, ...]:
    """ "32,3,224,224" as a tuple; raises UsageError for anything else."""
    sizes = text.replace("x", ",").split(",")
    if not all(s.strip().isascii() and s.strip().isdigit() and int(s) > 0 for s in sizes):
        raise UsageError(f"--input {text!r}: expected positive sizes with commas, batch first, such as 32,3,224,224")
    return tuple(map(int, sizes))


def parse_choices(text: str, option: str, choices: Sequence[str]) -> list[str]:
    """A list of names with commas; raises UsageError naming the choices."""
    names = _items(text, option)
    for name in names:
        if name not in choices:
            raise UsageError(f"{option} {name!r} is not known; expected one or more of: {', '.join(choices)}")
    return names


def parse_choice(text: str, option: str, choices: Sequence[str]) -> str:
    """One of the choices; raises UsageError naming them."""
    if text not in choices:
        raise UsageError(f"{option} {text!r} is not known; expected one of: {', '.join(choices)}")
    return text


def _items(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UsageError(f"{option} {text!r}: expected a list with commas")
    return list(dict.fromkeys(items))
