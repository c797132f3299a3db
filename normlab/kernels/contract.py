"""What a backend offers. A backend is one folder of three files, and one line in `normlab.kernels.registry`.

| file | what is in it |
|---|---|
| `backend.py` | `serves(x, entry)`: None, or the `Reason` why it cannot run this norm on this array or tensor |
| `planes.py` | the norms of the family, as `Planes` says |
| `positions.py` | statistics per position (LayerNorm, RMSNorm, ChannelNorm), as `Positions` says |

Only `serves` is called before a backend is chosen, so it imports nothing heavy.

Four kernels carry the family. x, g and y are planes (N, C, S); the rest are grids that broadcast to (N, C):

| kernel | returns |
|---|---|
| moments(x) | mean and biased variance of each plane, centred: never E[x^2] - E[x]^2 |
| affine(x, scale, center, shift) | y = scale * (x - center) + shift |
| dots(g, x, center) | the sums over each plane of g and of g * (x - center) |
| combine(g, x, center, a, b, c) | dx = a * g + b * (x - center) + c |

Fused with them are z = y + residual and act(z) (`normlab.kernels.activations`): the kernels of the backward pass then
work on dz = g * act'(z), which with a residual is also its gradient and is written to `to_residual`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from normlab.kernels.activations import Activation
from normlab.kernels.layout import Layout
from normlab.norms.application import Recipe
from normlab.norms.family import NormEntry
from normlab.norms.grid import Array

DTYPES = ("float32", "float64", "float16", "bfloat16")  # of both fast backends

# stands for the norms that have statistics per position, which the family does not have
POSITIONS = NormEntry(name="positions", title="statistics per position", formula="", paper="")


# (call, pull_back): see `Planes`
Differentiable = tuple[Any, Callable[..., Any]]


class Reason(NamedTuple):
    """Why a backend cannot serve: what it cannot serve, as in "dtype int8", and what to do about it."""

    what: str
    remedy: str = "use 'reference'"


class Backend(Protocol):
    """`backend.py`; what is registered as an object has `planes` and `positions` as attributes."""

    def serves(self, x: Any, entry: NormEntry | None) -> Reason | None:
        """Why this backend cannot run `entry` on x, or None if it can.

        x is an array, a tensor, or anything with their `dtype` and `device`; nothing else of x counts, and the result
        is remembered for both. `entry` is a norm of the family, `POSITIONS`, or None for any norm of the family.
        """
        ...


class Planes(Protocol):
    """The norms of the family on (N, C, *), dense in a `layout`, which shows them as planes.

    `saved.memory` is everything that the backward pass needs beside x, the parameters and the running statistics;
    `numbers` says how long it is for N, C and S, and `restored` makes `saved` of it again. `saved.batch` and
    `saved.moments` are (mean, biased variance, count) of the batch and of the planes, or None where the norm had no
    use for them.

    A backend may have one function more, which layers then call instead:

        normalize(recipe, layout, x, params, running, eps, act, residual, update, (call, pull_back)) -> y or None

    y is what `forward` writes, with its place in torch's graph, or None where layers have to make that themselves.
    Where a gradient is not ordinary (of a gradient, of a batch, of tensors that came back as others), it is
    `pull_back(call, has a residual, versions of running, memory, dy, x, residual, params)`.
    """

    def forward(
        self, recipe: Recipe, layout: Layout, x: Array, params: Mapping[str, Array], running: Any, eps: float,
        out: Array, act: Activation | None = None, residual: Array | None = None, update: Any = None,
    ) -> Any:  # fmt: skip
        """Write act(norm(x) + residual) to `out` and return `saved`.

        `update` is (running mean, running variance, momentum), updated in place with the batch's where the norm pooled
        over it. The momentum may be a tensor of one number on x's device, which a GPU's backend never waits for.
        """
        ...

    def backward(
        self, saved: Any, layout: Layout, x: Array, g: Array, out: Array, params: Iterable[Array],
        residual: Array | None = None, to_residual: Array | None = None,
    ) -> list[Any]:  # fmt: skip
        """Write dx to `out`, and return the gradients of the parameters in their order."""
        ...

    def numbers(self, recipe: Recipe, sizes: tuple[int, int, int]) -> int: ...

    def restored(
        self, recipe: Recipe, layout: Layout, x: Array, params: Mapping[str, Array], running: Any, eps: float,
        act: Activation | None, memory: Array,
    ) -> Any: ...  # fmt: skip


class Positions(Protocol):
    """Statistics per position, of x (R, D) over D or of x (N, C, S) over C.

    A backend may have one function more, which layers then call instead:

        normalize(x, weight, bias, size, eps, centred, last, pull_back) -> y or None

    x is a tensor of any shape: `size` elements at its end are normalized together, or where that is 0 the channels,
    dimension 1, which with `last` are the last in memory, of y too. y has its place in torch's graph; None means that
    layers have to make it themselves. Where a gradient is not ordinary it is
    `pull_back(backend, (size, centred, last), eps, which of weight and bias learn, dy, x, weight, bias, kept)`, where
    `backend` offers what is below.
    """

    KEPT_NUMBERS: int  # numbers that are kept of every position for the backward pass

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float, centred: bool, y: Array
    ) -> Any:  # fmt: skip
        """Write y and return `saved`; `saved.kept` is everything that the backward pass needs beside x and weight."""
        ...

    def backward(
        self, saved: Any, x: Array, weight: Array | None, g: Array, dx: Array, d_weight: Array | None,
        d_bias: Array | None,
    ) -> None:  # fmt: skip
        """Write dx, and the gradients of weight and bias where there is an array for them."""
        ...

    def restored(self, x: Array, kept: Array, centred: bool) -> Any:
        """`saved`, from its `kept`."""
        ...

    def kept_dtype(self, x: Array, dtype: Any) -> Any:
        """The dtype of what is kept, for parameters of this dtype."""
        ...

    def parameter_dtype(self, x: Array) -> Any:
        """The dtype in which this backend reads weight and bias, and writes their gradients."""
        ...
