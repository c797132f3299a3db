"""A grid function applied to the moments of one input: the map forward, and its pull-back.

Written once for every array library: backends apply it to NumPy arrays or torch tensors, and
`normlab.norms.program` to symbols, to learn the arithmetic that a compiled backend then performs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from normlab.norms.family import NormEntry
from normlab.norms.grid import Affine, Array, Grid, Moments, Value, library, pull_back, raw

# a weight or bias that is left out leaves the normalized value alone
_NEUTRAL = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Recipe:
    """What is to be computed: a norm, its options, which parameters it has, and whether it uses the batch.

    `traced` keeps the programs of `normlab.norms.program`, by samples and channels; `plans` what a backend prepared.
    """

    entry: NormEntry
    options: tuple[tuple[str, Any], ...]
    names: tuple[str, ...]
    training: bool
    has_running: bool
    traced: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False, repr=False)
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


class Application:
    """The `Affine` map that a recipe returns for some moments.

    `measure() -> (mean, var)`, grids (N, C); `params` and `running` are grids (1, C), or (1, 1) for a
    parameter of the layer; `size` is S.
    """

    def __init__(
        self,
        recipe: Recipe,
        measure: Callable[[], tuple[Array, Array]],
        shape: tuple[int, int],
        size: Any,
        params: Mapping[str, Array],
        running: tuple[Array, Array] | None,
        eps: Any,
    ) -> None:
        self.tape: list[Any] = []
        self.measured: tuple[Grid, ...] = ()
        self.size = size

        def moments() -> tuple[Grid, Grid]:
            mean, var = measure()
            self.measured = Grid(mean, self.tape), Grid(var, self.tape)
            return self.measured

        self.moments = Moments(moments, shape, size, training=recipe.training, running=running)
        self.learned = {name: Grid(v, self.tape) for name, v in params.items()}
        entry = recipe.entry
        assert entry.grid is not None
        absent: dict[str, Any] = {k: _NEUTRAL.get(k, v.initial) for k, v in entry.parameters.items() if k not in params}
        for name, value in absent.items():
            if callable(value):
                raise ValueError(
                    f"norm {entry.name!r}: params has no {name!r}, which starts with another number for each channel; "
                    f"give one of shape ({shape[1]},)"
                )
        p = SimpleNamespace(eps=eps, **self.learned, **absent)
        self.map: Affine = entry.grid(self.moments, p, **dict(recipe.options))
        if entry.running and len(self.moments.over_batch) > 1:
            raise ValueError(
                f"norm {entry.name!r} keeps running statistics but pools over the samples in two ways; "
                "there is one set of them, so pool over 'n' once"
            )

    def pull(self, scale: Array, center: Array, sum_g: Array, sum_gx: Array) -> tuple[Any, Any, dict[str, Value]]:
        """(b, c, {parameter: cotangent}) such that dx = scale * g + b * (x - center) + c.

        With D0, D1 the plane's sums of g and of g * (x - center), the grid receives dshift = D0, dscale = D1 and
        dcenter = -scale * D0. It returns dmean and dvar, which a plane of S elements feels as
        dmean / S + (2 dvar / S) * (x - mean). b and c are None where nothing depends on the moments.
        """
        seeds = [(self.map.shift, sum_g), (self.map.scale, sum_gx), (self.map.center, -scale * sum_g)]
        cotangent = pull_back(self.tape, seeds)
        grads = {name: cotangent(leaf) for name, leaf in self.learned.items()}
        dmean, dvar = (cotangent(v) for v in self.measured) if self.measured else (None, None)
        if dmean is None and dvar is None:
            return None, None, grads
        mean = raw(self.measured[0])
        nothing = library(mean).zeros_like(mean)
        b = nothing if dvar is None else dvar * (2 / self.size)
        c = (nothing if dmean is None else dmean / self.size) + b * (center - mean)
        return b, c, grads
