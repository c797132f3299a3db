"""The norms of the family: the kernels of `normlab.kernels.cpu.planes`, and a way to them that leads through C++.

`normalize` is an output with its place in autograd's graph. For whoever wants an output and no more (other backends'
tests, an operator of torch's), there are the functions that call the kernels from Python; the numbers are the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from normlab.kernels.activations import Activation
from normlab.kernels.contract import Differentiable
from normlab.kernels.cpu._forms import least_variance
from normlab.kernels.cpu.planes import backward, find_plan, forward, numbers, prepare_call, restored
from normlab.kernels.layout import Layout
from normlab.kernels.native import calls
from normlab.kernels.runtime import job
from normlab.kernels.runtime.openmp import parallel
from normlab.norms.application import Recipe

__all__ = ["backward", "forward", "normalize", "numbers", "restored"]

_PLACES = (
    "X", "G", "Y", "RESIDUAL", "TO_RESIDUAL", "MEMORY", "EPS", "TINY", "RUNNING_MEAN", "RUNNING_VAR", "RUNNING_BYTES",
    "MOMENTUM",
)  # fmt: skip

_part = calls.compiled.planes
_part.set_up({name: getattr(job, name) for name in _PLACES})
_normalize: Callable[..., Any] = _part.normalize


def normalize(
    recipe: Recipe,
    layout: Layout,
    x: Any,
    params: list[Any],
    running: tuple[Any, Any] | None,
    eps: float,
    act: Activation | None,
    residual: Any,
    update: tuple[Any, Any, float] | None,
    pulled_back: Differentiable,
) -> Any:
    """act(norm(x) + residual) of a tensor that is dense in the layout, or None where Python has to call the kernels."""
    key = (x.shape, layout, x.dtype, act, residual is None)
    plan = recipe.plans.get(key)
    if plan is None:
        plan = recipe.plans[key] = _plan(recipe, layout, x, act, residual is not None)
    return _normalize(plan, x, residual, params, running, update, eps, least_variance(eps), *pulled_back)


def _plan(recipe: Recipe, layout: Layout, x: Any, act: Activation | None, adds: bool) -> Any:
    plan = find_plan(recipe, layout, x, act)
    kept = calls.Kept()

    def prepare(backward: bool) -> tuple[array[int], int]:
        return kept.addressed(*prepare_call(plan, backward, adds and not (backward and act is None)))

    return _part.make_plan(
        prepare, plan.numbers, plan.sizes[1], plan.elements, layout.channels_last, act is not None, parallel()
    )
