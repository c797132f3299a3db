"""Grid functions as programs perform what the tape computes; a user's norm has the right gradients everywhere."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normlab.kernels import stages
from normlab.norms import family as norms
from normlab.norms import grid
from normlab.norms.application import Application, Recipe
from normlab.norms.family import AFFINE, Learned, NormEntry
from normlab.norms.grid import Affine, Grid, Moments, average, exp, maximum, raw, rsqrt, sqrt, standardize
from normlab.norms.program import INPUTS, OPS, Program, trace
from tests.layers.parity import BACKENDS, arrange, backend

# --- norms of the literature, as a user would write them -------------------------------------------------------------


def switchable(m: Moments, p: Any) -> Affine:
    """Luo et al. 2018: three poolings, mixed by a softmax."""
    a, b, c = exp(p.a), exp(p.b), exp(p.c)
    total = a + b + c
    mean = (a * m.mean + b * m.pool("c").mean + c * m.pool("n").mean) / total
    var = (a * m.var + b * m.pool("c").var + c * m.pool("n").var) / total
    return Affine(p.weight * rsqrt(var + p.eps), mean, p.bias)


def root_mean_square(m: Moments, p: Any) -> Affine:
    """Zhang & Sennrich 2019: no centre; statistics over channels and positions."""
    square = average(m.var + m.mean * m.mean, "c")
    return Affine(p.weight * rsqrt(square + p.eps), 0.0, p.bias)


def filter_response(m: Moments, p: Any) -> Affine:
    """Singh & Krishnan 2020: the plane's mean square."""
    return Affine(p.weight / sqrt(m.var + m.mean**2 + p.eps), 0.0, p.bias)


def global_response(m: Moments, p: Any) -> Affine:
    """Woo et al. 2023: each plane's norm relative to the channels' average, with a residual."""
    strength = sqrt((m.var + m.mean**2) * m.count + 1e-6)
    relative = strength / (average(strength, "c") + 1e-6)
    return Affine(p.weight * relative + 1, 0.0, p.bias)


def centered(m: Moments, p: Any) -> Affine:
    """Mean-only batch norm, Salimans & Kingma 2016."""
    return Affine(p.weight, m.pool("n").mean, p.bias)


def floored(m: Moments, p: Any) -> Affine:
    """A variance that is not believed below a floor."""
    return Affine(p.weight * maximum(m.pool("c", 2).var, 0.9) ** -0.5, m.pool("c", 2).mean, p.bias)


def batch_group(m: Moments, p: Any) -> Affine:
    """Zhou et al. 2020, in part: groups pooled over the batch too."""
    return standardize(m.pool("c", 2).pool("n"), p)


def constant(m: Moments, p: Any) -> Affine:
    """No statistics at all."""
    return Affine(2.0, 1.0, p.bias)


def uncentered(m: Moments, p: Any) -> Affine:
    """The shift depends on the input, the scale does not."""
    return Affine(1.0, 0.0, p.bias - m.mean)


def frozen_gate(m: Moments, p: Any) -> Affine:
    """A map times a number per channel that does not learn."""
    return frozen(p.weight) * standardize(m, p) + 0.5 * standardize(m.pool("c"), p)


MIXING = {**AFFINE, "a": Learned(0.3, per_channel=False), "b": Learned(-0.2, per_channel=False), "c": Learned(0.1)}
INVENTED = (
    switchable, root_mean_square, filter_response, global_response, centered, floored, batch_group, constant,
    uncentered, frozen_gate,
)  # fmt: skip


# --- random grid functions -------------------------------------------------------------------------------------------


def frozen(v: Any) -> Any:
    """`stop_gradient`, which leaves a plain tensor's history alone, and its like for plain tensors."""
    return v.detach() if isinstance(v, torch.Tensor) else grid.stop_gradient(v)


UNARY: tuple[Callable[[Any], Any], ...] = (
    lambda v: sqrt(v * v + 1),
    lambda v: rsqrt(v * v + 0.5),
    lambda v: exp(-v * v),
    lambda v: maximum(v, 0.25),
    lambda v: (v * v + 1) ** -0.7,
    lambda v: v**2 - 0.5,
    lambda v: 1 - v,
    lambda v: 1 / (v * v + 1),
    lambda v: average(v, "n"),
    lambda v: average(v, "c"),
    lambda v: average(v, "c", 2),
    lambda v: frozen(v),
)
BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    lambda v, w: v + w,
    lambda v, w: v - w,
    lambda v, w: v * w,
    lambda v, w: v / (w * w + 1),
)
LEAVES: tuple[Callable[[Moments, Any], Any], ...] = (
    lambda m, p: m.mean,
    lambda m, p: m.var,
    lambda m, p: m.pool("n").mean,
    lambda m, p: m.pool("n").var,
    lambda m, p: m.pool("c").var,
    lambda m, p: m.pool("c", 2).mean,
    lambda m, p: m.pool("c", 2).pool("n").var,
    lambda m, p: p.weight,
    lambda m, p: p.bias,
    lambda m, p: p.eps + 0.3 * p.weight,
)
trees = st.recursive(
    st.integers(0, len(LEAVES) - 1),
    lambda inner: st.one_of(
        st.tuples(st.integers(0, len(UNARY) - 1), inner), st.tuples(st.integers(0, len(BINARY) - 1), inner, inner)
    ),
    max_leaves=6,
)


def value(tree: Any, m: Moments, p: Any) -> Any:
    if isinstance(tree, int):
        return LEAVES[tree](m, p)
    op, *operands = tree
    return (UNARY, BINARY)[len(operands) - 1][op](*(value(t, m, p) for t in operands))


@st.composite
def grid_functions(draw: st.DrawFn) -> Callable[[Moments, Any], Affine]:
    scale, center, shift = draw(trees), draw(trees), draw(trees)
    return lambda m, p: Affine(value(scale, m, p), value(center, m, p), value(shift, m, p))


def recipe_of(function: Callable, training: bool = True, running: bool = False) -> Recipe:
    parameters = MIXING if function is switchable else AFFINE
    entry = NormEntry("invented", "", "", "", grid=function, parameters=parameters)
    return Recipe(entry, (), tuple(parameters), training, running)


# --- a program beside the tape ---------------------------------------------------------------------------------------


def perform(program: Program, known: dict[str, np.ndarray], names: tuple[str, ...], shape: tuple[int, int]) -> list:
    """The readable machine: what is not written stays NaN, so that reading it shows."""
    registers = np.full((program.registers, *shape), np.nan)
    for i, name in enumerate((*INPUTS, *names)):
        if name in known:
            registers[i] = known[name]
    first = len(INPUTS) + len(names)
    registers[first : first + len(program.constants)] = program.constants[:, None, None]
    arithmetic: dict[str, Callable] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "max": np.maximum,
        "greater": lambda a, b: 1.0 * (a > b), "sqrt": lambda a, _: np.sqrt(a), "rsqrt": lambda a, _: 1 / np.sqrt(a),
        "exp": lambda a, _: np.exp(a),
    }  # fmt: skip
    for op, out, a, b, groups, varies in program.code:
        left, right = (registers[r] if varies & bit else registers[r, :1] for r, bit in ((a, 2), (b, 4)))
        name = OPS[op]
        if name.endswith("_n"):
            result = np.broadcast_to(left, shape).sum(0, keepdims=True) / (shape[0] if name == "mean_n" else 1)
        elif name.endswith("_c"):
            parts = left.reshape(len(left), groups, -1)
            result = parts.sum(2, keepdims=True) / (parts.shape[2] if name == "mean_c" else 1)
            result = np.broadcast_to(result, parts.shape).reshape(left.shape)
        else:
            result = arithmetic[name](left, right)
        registers[out] = np.nan
        registers[out, : len(result) if varies & 1 else 1] = result if varies & 1 else result[:1]
    return [np.broadcast_to(registers[r] if varies else registers[r, :1], shape) for r, varies in program.outputs]


def check_program(recipe: Recipe, shape: tuple[int, int] = (3, 4)) -> None:
    """Both programs of a recipe answer what the tape answers."""
    rng = np.random.default_rng(0)
    size, eps = 6, 1e-2
    known = {
        "mean": rng.normal(size=shape), "var": rng.uniform(0.5, 1.5, shape), "sum_g": rng.normal(size=shape),
        "sum_gx": rng.normal(size=shape), "running_mean": rng.normal(size=(1, shape[1])),
        "running_var": rng.uniform(0.5, 1.5, (1, shape[1])), "size": np.full((1, 1), size), "eps": np.full((1, 1), eps),
    }  # fmt: skip
    scalars = {k for k, v in recipe.entry.parameters.items() if not v.per_channel}
    params = {k: rng.uniform(0.5, 1.5, (1, 1 if k in scalars else shape[1])) for k in recipe.names}
    running = (known["running_mean"], known["running_var"]) if recipe.has_running else None
    tape = Application(recipe, lambda: (known["mean"], known["var"]), shape, size, params, running, eps)
    full = {k: np.broadcast_to(raw(v), shape) for k, v in vars(tape.map).items()}
    known |= {"scale": full["scale"], "center": full["center"]}
    b, c, grads = tape.pull(full["scale"], full["center"], known["sum_g"], known["sum_gx"])

    programs = trace(recipe, *shape)
    assert programs.measures == bool(tape.measured)
    assert programs.linear == (b is None)
    assert programs.pools_batch == (tape.moments.batch is not None)
    inputs = {
        **{k: np.broadcast_to(v, shape) for k, v in known.items()},
        **{k: np.broadcast_to(v, shape) for k, v in params.items()},
    }
    same = lambda got, want: np.testing.assert_allclose(got, np.broadcast_to(want, shape), rtol=1e-9, atol=1e-9)  # noqa: E731
    after = {"sum_g", "sum_gx", "scale", "center"}  # not known before the planes are written
    answers = perform(programs.forward, {k: v for k, v in inputs.items() if k not in after}, recipe.names, shape)
    wants = [*full.values(), *(tape.moments.batch[:2] if programs.pools_batch else ())]
    for got, want in zip(answers, wants, strict=True):
        same(got, want)
    got_b, got_c, *got_grads = perform(programs.backward, inputs, recipe.names, shape)
    if b is not None:
        same(got_b, b)
        same(got_c, c)
    for got, (name, want) in zip(got_grads, grads.items(), strict=True):
        total = 0.0 if want is None else np.asarray(want).sum(0)
        # a gradient per sample; that of a number for the layer comes repeated for every channel
        np.testing.assert_allclose(got.sum(0), np.broadcast_to(total, shape[1]), rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["bn", "in", "bin", "ln", "gn"])
def test_family(norm: str, training: bool, shape: tuple[int, int]) -> None:
    entry = norms.describe(norm)
    options = (("groups", 2),) if norm == "gn" else ()
    for names in (tuple(entry.parameters), tuple(k for k in entry.parameters if k != "bias"), ()):
        check_program(Recipe(entry, options, names, training, entry.running and not training), shape)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4)])
@pytest.mark.parametrize("function", INVENTED)
def test_invented(function: Callable, shape: tuple[int, int]) -> None:
    check_program(recipe_of(function), shape)
    check_program(recipe_of(function, training=False, running=True), shape)


@given(grid_functions(), st.sampled_from([(3, 4), (1, 4), (2, 2)]))
def test_random(function: Callable, shape: tuple[int, int]) -> None:
    check_program(recipe_of(function), shape)


@pytest.mark.parametrize("training", [True, False])
def test_grid_function_must_not_branch_on_values(training: bool) -> None:
    def branching(m: Moments, p: Any) -> Affine:
        return Affine(p.weight if m.pool("n").var > 1 else 1.0, 0.0, p.bias)

    with pytest.raises(TypeError, match=r"must not branch on the values of grids|'>' not supported between .*Grid"):
        trace(recipe_of(branching, training, not training), 3, 4)


def test_program_is_short() -> None:
    """What no output needs is left out; registers are used again."""
    programs = trace(recipe_of(lambda m, p: Affine(p.weight, m.mean, (m.pool("n").var * 0 + p.bias, p.bias)[1])), 3, 4)
    assert len(programs.forward.code) <= 8  # the pooled moments only, for running statistics
    chain = recipe_of(lambda m, p: Affine(((((m.var + 1) * 2 + 1) * 2 + 1) * 2 + 1) * 2, m.mean, p.bias))
    program = trace(chain, 3, 4).forward
    assert program.registers <= len(INPUTS) + 2 + len(program.constants) + 2


# --- end to end: values and gradients of a norm that is only a grid function, by torch's autograd ------------------


def by_autograd(function: Callable, x: torch.Tensor, params: dict[str, torch.Tensor], eps: float) -> torch.Tensor:
    """The norm in plain torch arithmetic: the grid function meets no tape."""
    n, channels = x.shape[:2]
    planes = x.reshape(n, channels, -1)
    mean = planes.mean(2)
    var = ((planes - mean[:, :, None]) ** 2).mean(2)
    m = Moments(lambda: (mean, var), (n, channels), planes.shape[2])
    a = function(m, SimpleNamespace(eps=eps, **{k: v.reshape(1, -1) for k, v in params.items()}))
    scale, center, shift = (
        torch.as_tensor(raw(v), dtype=x.dtype).expand(n, channels)[:, :, None] for v in (a.scale, a.center, a.shift)
    )
    return (scale * (planes - center) + shift).reshape(x.shape)


def check_end_to_end(function: Callable, backend_name: str, layout: str, shape: tuple[int, ...] = (3, 4, 2, 3)) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (arrange(torch.randn(shape, dtype=torch.float64, generator=generator), layout) for _ in range(2))
    recipe = recipe_of(function)
    params = {
        k: torch.rand(shape[1] if v.per_channel else 1, dtype=torch.float64, generator=generator) + 0.5
        for k, v in recipe.entry.parameters.items()
    }
    with backend(backend_name):
        y, cache = stages.forward(recipe, x, params, eps=1e-2)
        dx, grads = stages.backward(dy, cache)
    leaves = [v.detach().clone().requires_grad_() for v in (x, *params.values())]
    want = by_autograd(function, leaves[0], dict(zip(params, leaves[1:], strict=True)), 1e-2)
    torch.testing.assert_close(y, want.detach(), rtol=1e-9, atol=1e-9)
    wants = torch.autograd.grad(want, leaves, dy, materialize_grads=True) if want.requires_grad else None
    for got, expected in zip((dx, *grads.values()), wants or (), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.covering("function", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("function", INVENTED)
def test_gradients_of_invented(function: Callable, layout: str, backend_name: str) -> None:
    check_end_to_end(function, backend_name, layout)
    check_end_to_end(function, backend_name, layout, (40, 4, 5))  # enough samples to be worked on in blocks


@pytest.mark.parametrize("backend_name", BACKENDS)
@given(grid_functions())
def test_gradients_of_random(backend_name: str, function: Callable) -> None:
    check_end_to_end(function, backend_name, "last")


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_gradients_may_be_written_to(backend_name: str) -> None:
    """An optimizer or a clipping of gradients works in place: no two numbers may share their memory."""
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    for function in (
        lambda m, p: Affine(average(p.weight, "c"), m.mean, p.bias),  # the same number for every channel
        lambda m, p: Affine(p.weight + p.bias, m.mean),  # the same gradient for two parameters
    ):
        recipe = recipe_of(function)
        with backend(backend_name):
            _, cache = stages.forward(recipe, x, {"weight": np.ones(4), "bias": np.ones(4)})
            grads = stages.backward(x, cache)[1]
        before = {k: v.copy() for k, v in grads.items()}
        grads["weight"][0] += 1
        before["weight"][0] += 1
        for name, grad in grads.items():
            np.testing.assert_array_equal(grad, before[name])


def test_stop_gradient_is_a_constant() -> None:
    tape: list = []
    assert not isinstance(grid.stop_gradient(Grid(np.ones((1, 2)), tape)), Grid)
    assert tape == []
