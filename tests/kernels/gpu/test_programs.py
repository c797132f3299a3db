"""The Triton backend against float64 oracles: on a CUDA device if there is one, else in Triton's interpreter."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normlab.kernels import stages
from normlab.norms import family as norms
from normlab.norms.grid import Affine, exp
from normlab.norms.program import trace
from tests.kernels.gpu.interpreting import DEVICE, cut, interpret, kernels, mistaken, programs, triton_gpu
from tests.layers.parity import ACTS, MORE_ACTS, Case, acted, arrange, channels_of, mixed, normalized, unit
from tests.norms.test_program import INVENTED, by_autograd, recipe_of

# the interpreter computes the lanes that are masked out, too
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

NORMS = ("bn", "in", "bin", "ln", "gn")
ULPS = 32


@pytest.fixture(autouse=True)
def served_by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interpret(monkeypatch)
    monkeypatch.setattr(stages, "planes_for", lambda x, entry=None: triton_gpu)
    stages.recipe.cache_clear()  # plans may have been made for another device
    yield
    stages.recipe.cache_clear()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched so far."""
    seen: list[str] = []

    class Counted:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            seen.append(self.kernel.fn.__name__)
            return self.kernel[grid]

    for name in ("forward", "backward"):
        monkeypatch.setattr(kernels, name, Counted(getattr(kernels, name)))
    return seen


def check(case: Case, act: str | None = None, residual: bool = False, ulps: float = ULPS) -> None:
    """Raise AssertionError unless y, all gradients and running statistics agree with the textbook in float64."""
    generator = torch.Generator().manual_seed(sum(map(ord, f"{case}{act}{residual}")))

    def noise() -> Tensor:
        return arrange(torch.randn(case.shape, generator=generator).to(case.dtype), case.layout)

    x, dy, r = noise() + case.mean, noise(), noise() if residual else None
    entry, channels = norms.describe(case.norm), case.shape[1]
    # of the elements' dtype, or float32 as under mixed precision
    real = torch.float64 if case.dtype == torch.float64 else torch.float32
    names = ("running_mean", "running_var", *entry.parameters)
    rows = {k: torch.rand(channels, generator=generator, dtype=real) + 0.5 for k in names}
    params = {k: rows[k] for k in entry.parameters}
    running = [rows[k].clone().to(DEVICE) for k in names[:2]] if entry.running else []

    y, cache = stages.forward(
        case.norm,
        x.to(DEVICE),
        {k: v.to(DEVICE) for k, v in params.items()},
        training=case.training,
        running=None if case.training or not running else (running[0], running[1]),
        options={"groups": case.groups} if case.norm == "gn" else None,
        act=act,
        residual=None if r is None else r.to(DEVICE),
        update=(running[0], running[1], 0.1) if case.training and running else None,
    )
    dx, grads = stages.backward(dy.to(DEVICE), cache)

    leaves = [v.double().clone().requires_grad_() for v in (x, *params.values(), *([] if r is None else [r]))]
    p = dict(zip(params, leaves[1:], strict=False)) | {k: rows[k].double() for k in names[:2]}
    if case.training or not entry.running:
        p.pop("running_mean")
    z = normalized(case, leaves[0], p, 1e-5)
    z = z * channels_of(p["weight"], z) + channels_of(p["bias"], z)
    z = z if r is None else z + leaves[-1]
    want = acted(act, z)
    wants = torch.autograd.grad(want, leaves, dy.double())
    pairs = {"y": (y, want.detach()), "dx": (dx, wants[0])}
    pairs |= {f"d{k}": (grads[k], w) for k, w in zip(params, wants[1:], strict=False)}
    if r is not None:
        pairs["dresidual"] = (cache.to_residual, wants[-1])
    if running:
        over = (0, *range(2, x.dim()))
        mean, var = x.double().mean(over), x.double().var(over, correction=1)
        new = [mixed(rows[k], v, 0.1) if case.training else rows[k] for k, v in zip(names, (mean, var), strict=False)]
        pairs |= {k: (v, w) for k, v, w in zip(names, running, new, strict=False)}
    for name, (got, expected) in pairs.items():
        assert got.shape == expected.shape, f"{case}: {name} has shape {tuple(got.shape)}"
        bound = (ulps if got.dtype == case.dtype else ULPS) * unit(got.dtype) * (1 + float(expected.abs().max()))
        error = float((got.cpu().double() - expected).abs().max())
        assert error <= bound, f"{case}: {name} is off by {error:.2e}, allowed {bound:.2e}"


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.covering
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_parity(norm: str, training: bool, layout: str) -> None:
    for shape in ((5, 3, 7), (1, 5, 33), (4, 12, 3, 3)):
        check(Case(norm, shape, layout=layout, training=training, groups=3 if shape[1] % 3 == 0 else 1))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", ["bn", "ln", "gn"])
def test_one_position(norm: str, layout: str) -> None:
    check(Case(norm, (5, 12), layout=layout))
    check(Case(norm, (3, 6, 1, 1), layout=layout))


@pytest.mark.parametrize("act", [act for act in ACTS if act])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_activations(norm: str, act: str) -> None:
    check(Case(norm, (3, 4, 3, 5)), act)
    check(Case(norm, (3, 4, 3, 5), layout="last"), act, residual=True)
    check(Case(norm, (3, 4, 3, 5), training=False), act, residual=True)


@pytest.mark.parametrize("act", MORE_ACTS)
def test_activations_that_are_compiled_when_asked_for(act: str) -> None:
    check(Case("gn", (3, 4, 3, 5)), act, residual=True)
    check(Case("gn", (3, 4, 3, 5), torch.float64), act)
    check(Case("gn", (3, 4, 3, 5), torch.bfloat16), act, ulps=1)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_residual_alone(norm: str, layout: str) -> None:
    check(Case(norm, (3, 4, 3, 5), layout=layout), residual=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes(norm: str, dtype: torch.dtype) -> None:
    """Half precision is rounded once, at the end."""
    for layout in ("first", "last"):
        check(Case(norm, (3, 6, 3, 7), dtype, layout), ulps=ULPS if dtype == torch.float64 else 1)
        # dz is rounded as the residual's gradient before dx is made of it
        check(Case(norm, (3, 6, 3, 7), dtype, layout), "silu", True, ulps=ULPS if dtype == torch.float64 else 4)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", ["bn", "in", "ln", "gn"])
def test_large_mean(norm: str, layout: str) -> None:
    """No digit is lost by being far from zero; the running mean has those of its own size."""
    check(Case(norm, (3, 6, 17, 9), mean=3000.0, layout=layout))


def test_first_element_far_from_the_others() -> None:
    """A variance about the first element, instead of about the mean, would cancel."""
    x = torch.randn(1, 1, 50)
    x[0, 0, 0] = 1e6
    _, cache = stages.forward("in", x.to(DEVICE), {})
    assert cache.planes is not None
    want = x.double().var(correction=0)
    assert abs(float(cache.planes[1]) - float(want)) < 1e-6 * float(want)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_planes_measured_in_parts(norm: str, layout: str, monkeypatch: pytest.MonkeyPatch, launches: list[str]) -> None:
    """A few large planes: several instances for a plane, merged by Chan's formula, the last part shorter."""
    for constant, value in (("_TILE", 16), ("_ROW", 8), ("_SHORT", 4), ("_COLUMNS", 2), ("_WAVES", 1)):
        monkeypatch.setattr(cut, constant, value)
    monkeypatch.setattr(triton_gpu, "processors", lambda device: 16)
    # (the gate's gradient is a difference of two means)
    check(Case(norm, (2, 4, 5, 7), layout=layout, mean=0.0 if norm == "bin" else 100.0), "relu", True)
    assert launches == ["forward"] * 2 + ["backward"] * 2


# --- norms that are only a grid function -----------------------------------------------------------------------------


def check_function(function: Callable, layout: str = "first", shape: tuple[int, ...] = (3, 4, 2, 3)) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (arrange(torch.randn(shape, dtype=torch.float64, generator=generator), layout) for _ in range(2))
    recipe = recipe_of(function)
    params = {
        k: torch.rand(shape[1] if v.per_channel else 1, dtype=torch.float64, generator=generator) + 0.5
        for k, v in recipe.entry.parameters.items()
    }
    y, cache = stages.forward(recipe, x.to(DEVICE), {k: v.to(DEVICE) for k, v in params.items()}, eps=1e-2)
    dx, grads = stages.backward(dy.to(DEVICE), cache)
    leaves = [v.detach().clone().requires_grad_() for v in (x, *params.values())]
    want = by_autograd(function, leaves[0], dict(zip(params, leaves[1:], strict=True)), 1e-2)
    wants = torch.autograd.grad(want, leaves, dy, materialize_grads=True)
    for got, expected in zip((y, dx, *grads.values()), (want.detach(), *wants), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("function", INVENTED)
def test_invented(function: Callable, layout: str) -> None:
    """Within a plane, a group, a batch, and over several of these at once."""
    check_function(function, layout)


def test_powers_and_constants() -> None:
    check_function(lambda m, p: Affine(p.weight * (m.var + 1) ** -0.3 + (m.mean + 2) ** 3 * 1e-3, m.mean, p.bias))
    check_function(lambda m, p: Affine((m.var + 1) ** -2 + exp(-m.var) / 3, 0.1, p.bias * 1e-5))


def test_source_is_what_one_would_write() -> None:
    """The whole of group norm's program, to be read."""
    recipe = stages.recipe("gn", (("groups", 2),), ("weight", "bias"), True, False)
    text = programs.source(trace(recipe, 3, 4).forward, "forward", (True, True))
    assert text.count("tl.sum(tl.where(own, ") == 2
    assert "tl.rsqrt(" in text
    assert "running[" not in text
    ast.parse(text)


# --- launches, and what the host does ------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "count"), [("in", 1), ("ln", 1), ("gn", 1), ("bn", 2), ("bin", 2)])
def test_launches(norm: str, count: int, launches: list[str]) -> None:
    """One each way for a norm that stays within samples, two for one that pools over the batch."""
    check(Case(norm, (8, 8, 5, 7)), "relu", True)
    assert launches == ["forward"] * count + ["backward"] * count


def test_evaluation_reads_once(launches: list[str]) -> None:
    check(Case("bn", (8, 8, 5, 7), training=False))
    assert launches == ["forward", "backward"]


def test_no_launch_reads_a_result_on_the_host() -> None:
    """Nothing that waits for the device; on one, torch itself watches (tests/gpu)."""
    waiting = {"item", "cpu", "numpy", "nonzero", "synchronize", "is_nonzero", "any", "all"}
    for module in (triton_gpu, cut, programs, kernels):
        tree = ast.parse(inspect.getsource(module))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        assert not waiting.intersection(n.func.attr for n in calls if isinstance(n.func, ast.Attribute))


def test_empty_batch() -> None:
    y, cache = stages.forward("gn", torch.empty(0, 4, 3).to(DEVICE), {}, options={"groups": 2})
    assert stages.backward(y, cache)[0].shape == (0, 4, 3)


def without_interpreter(module: str, tmp_path: Path, *arguments: str) -> list[str]:
    """Lines printed by a module of this folder in a process that compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.gpu.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[3],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


# columns of more elements than an instance holds sums for
@pytest.mark.parametrize(
    ("what", "count"),
    [(("bin", "gn", "columns"), 4 + 2 + 4), pytest.param(("ln", "rows"), 4 + 3, marks=pytest.mark.slow)],
    ids=str,
)
def test_compiles_for_an_h100(what: tuple[str, ...], count: int, tmp_path: Path) -> None:
    """What the interpreter accepts the compiler may not: types that change in a loop, names, registers."""
    lines = without_interpreter("compiling", tmp_path, *what)
    assert len(lines) == count
    assert all(line.endswith(" compiled") for line in lines), lines


@pytest.mark.parametrize(("norm", "count"), [("gn", 2), pytest.param("bn", 4, marks=pytest.mark.slow)])
def test_later_launches_go_straight_to_the_compiled_kernel(norm: str, count: int, tmp_path: Path) -> None:
    """With the same arguments; a tensor off a boundary of 16 bytes, which takes another variant, is dispatched."""
    assert without_interpreter("launching", tmp_path, norm) == [
        f"{norm} first: {count} launched, {count} dispatched",
        f"{norm} again: the same, 0 dispatched",
        f"{norm} off a boundary: {count} launched, {count} dispatched",
        f"{norm} off a boundary: {count} launched, {count} dispatched",
        f"{norm} back on it: 0 dispatched",
    ]


# --- teeth ---------------------------------------------------------------------------------------------------------


FAR = Case("in", (2, 2, 21), mean=2000.0)
SABOTAGE: dict[str, tuple[str, str, Case]] = {
    "act' is 1": ("slope = tl.where(z > 0.0, 1.0, 0.0)", "slope = tl.where(z > 0.0, 1.0, 1.0)", Case("gn", (3, 4, 5))),
    "padding counts": ("count = (end - b0)", "count = tl.maximum(end - b0, BLOCK)", FAR),
    "mean of a tile is rounded": (
        "off = tl.sum(deviations, 1)",
        "off = 0.0 * tl.sum(deviations, 1)",
        replace(FAR, mean=1e6),
    ),
    "center is rounded": ("t += a * (near", "t += 0.0 * (near", replace(FAR, mean=1e6)),
    "dots about the rounded center": (
        "+ (center.to(REAL).to(tl.float64) - center) * sum_up",
        "",
        replace(FAR, mean=1e6),
    ),
    "dx without its slope": ("a * up + (b * d + c)", "a * up + c", Case("bn", (3, 4, 5))),
    "biased running variance": ("(count.to(tl.float64) /", "(1.0 +", Case("bn", (3, 4, 5))),
    "padded samples count": ("tl.where(own, solved[2 + i], 0.0)", "solved[2 + i] + 1.0", Case("bn", (3, 4, 5))),
    "slope of the leaky part": ("tl.full([], SLOPE, z.dtype))", "tl.full([], 0.0, z.dtype))", Case("gn", (3, 4, 5))),
    "parts are read elsewhere": ("parts = slopes + 2 * planes", "parts = slopes + planes", Case("bn", (3, 4, 5))),
    "tiles are not merged": ("square += between * between", "square += 0.0 * between", Case("in", (2, 2, 21))),
    "parts are not merged": ("within + between * between", "within", Case("bn", (2, 2, 21))),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison passes with the kernels' text, and fails with a mistake written into it."""
    right, wrong, case = SABOTAGE[name]
    for constant, value in (("_TILE", 16), ("_ROW", 16), ("_SHORT", 4)):  # some tiles to a plane
        monkeypatch.setattr(cut, constant, value)
    act = "leaky_relu:slope=0.2" if "leaky" in name else "relu"
    check(case, act)
    monkeypatch.setattr(triton_gpu, "kernels", mistaken(kernels, right, wrong, tmp_path))
    stages.recipe.cache_clear()
    with pytest.raises(AssertionError, match="is off by"):
        check(case, act)
