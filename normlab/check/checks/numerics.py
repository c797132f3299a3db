"""Numerics: how the error grows with the mean, the spread and the size, and what special values do.

Rounding alone explains an error of about u * (1 + |mean| / sqrt(var + eps)), u the precision's unit: the input
minus its mean cannot be better than that. A layer passes while its error stays within a fixed multiple.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.dialect import Setup, measure_gain
from normlab.check.oracle import Array, Case, Recipe, forward
from normlab.check.probe import bug, check, compact, note, passed, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported

ALLOWED = 64.0  # multiples of the rounding error that any sound algorithm stays within
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ENDS = [-36, -28, -20, -12, 12, 20, 28, 36]  # exponents of 10 from which on squares leave float32
CENTRED = "var = mean((x - mean)^2), never mean(x^2) - mean^2; statistics in float32 at least"


@dataclass(frozen=True)
class Point:
    """One cell of the error surface: input mean and standard deviation, error in rounding units, raw error."""

    mean: float
    std: float
    units: float
    error: float

    def is_usual(self) -> bool:
        """Whether squares of these numbers are within float32 by a wide margin."""
        return 1e-8 <= self.std <= 1e8 and (self.mean == 0 or 1e-8 <= self.mean <= 1e8)


def plain(setup: Setup, dtype: str, **changes: Any) -> tuple[Subject, Recipe]:
    """A new layer (weight 1, bias 0) in a precision, and its recipe: eps may depend on the precision."""
    layer = setup.subject.fresh(dtype=dtype, **changes)
    ones = {r: np.full(v.size, 0.0 if r == "bias" else 1.0) for r, v in layer.parameters.items()}
    layer.set_parameters(ones)
    recipe = setup.recipe
    if "eps" not in setup.subject.declared and dtype == "float32":
        gain = measure_gain(layer, recipe, setup.shape, np.float32)
        if gain is not None and gain.placement.startswith("inside") and gain.eps > 3 * recipe.eps:
            recipe = replace(recipe, eps=gain.eps)
    return layer, recipe


def units(y: NDArray[Any], x: NDArray[Any], recipe: Recipe, unit: float) -> tuple[float, float]:
    """Largest error in multiples of what rounding explains, and the largest error itself."""
    case = Case(recipe, np.asarray(x, dtype=np.float64))
    expected = forward(case)
    condition = np.zeros_like(expected)
    for p in case.passes():
        grid_condition = np.abs(p.pool(p.x)) / p.std
        condition = np.maximum(condition, recipe.from_grid(np.broadcast_to(grid_condition, p.x.shape), expected.shape))
    got = np.asarray(y, dtype=np.float64)
    if not np.all(np.isfinite(got)):
        return float("inf"), float("inf")
    off = np.abs(got - expected)
    allowed = unit * (1 + condition) * (1 + np.abs(expected))
    return float((off / allowed).max()), float(off.max())


def surface(setup: Setup, dtype: str, exponents: list[int]) -> list[Point]:
    """The error over mean and standard deviation 10^e, for every pair of exponents, and mean 0."""
    layer, recipe = plain(setup, dtype)
    z = np.random.default_rng(17).normal(0, 1, setup.shape)
    numpy_dtype = np.dtype(dtype)
    points = []
    for std_exponent in exponents:
        for mean in (0.0, *(10.0**e for e in exponents)):
            std = 10.0**std_exponent
            x = (mean + std * z).astype(numpy_dtype)
            y = layer.forward(x, True)
            points.append(Point(mean, std, *units(y, x, recipe, UNIT[dtype])))
    return points


@check("numerics.surface")
def error_surface(setup: Setup) -> Finding:
    if "float32" not in setup.subject.dtypes:
        return skip("the target takes no float32")
    exponents = [-8, -4, -2, 0, 1, 2, 3, 4, 8] if setup.quick else list(range(-8, 9))
    measured = surface(setup, "float32", sorted(exponents + (ENDS[::2] if setup.quick else ENDS)))
    table: dict[str, Any] = {"points": [[p.mean, p.std, p.units, p.error] for p in measured]}
    points = [p for p in measured if p.is_usual()]  # `numerics.overflow` says what becomes of the others
    worst = max(points, key=lambda p: p.units)
    if worst.units <= ALLOWED:
        lost = sum(p.units > ALLOWED for p in measured)
        more = f"; beyond 1e8 and 1e-8 it is lost at {lost} of {len(measured) - len(points)} points" if lost else ""
        return passed(f"float32 error stays within {worst.units:.3g} rounding units over mean and std{more}", **table)
    at = f"mean {worst.mean:g}, std {worst.std:g}: error {worst.error:.3g}, {worst.units:.3g} rounding units"
    failing = [p for p in points if p.units > ALLOWED]
    first = min(failing, key=lambda p: (p.mean / p.std, p.mean))
    at_first = (
        f"mean {first.mean:g}, std {first.std:g}: error {first.error:.3g} "
        f"(rounding explains {first.error / first.units:.3g})"
    )
    if all(p.mean / p.std >= 3 for p in failing) and setup.recipe.centers:
        return bug(
            f"float32 output is wrong where the mean is large beside the spread ({at_first}): the variance is a "
            "difference of large numbers, mean(x^2) - mean^2, and cancels",
            "cancellation",
            CENTRED,
            _surface_example(setup, first),
            **table,
        )
    if all(p.std <= 1e-2 for p in failing):
        return bug(
            f"float32 output is wrong for small variances ({at}): eps or the variance is lost",
            "small-variance",
            "sqrt(var + eps) in float32 at least",
            **table,
        )
    if all(p.std >= 1e2 for p in failing):
        return bug(
            f"float32 output is wrong for large inputs ({at}): squares overflow or are clipped",
            "large-input",
            CENTRED,
            **table,
        )
    return bug(f"float32 output is wrong ({at})", "imprecise", CENTRED, **table)


def _surface_example(setup: Setup, at: Point) -> str | None:
    """The fewest values with this mean and spread that show the error."""
    from normlab.check.probe import small_shapes

    try:
        layer, recipe = plain(setup, "float32")
        for shape in small_shapes(setup, recipe.channels):
            grid = recipe.to_grid(np.zeros(shape)).shape
            if np.prod([grid[a] for a in recipe.axes]) < 2:
                continue
            x = (at.mean + at.std * np.random.default_rng(17).normal(0, 1, shape)).astype(np.float32)
            y = layer.forward(x, True)
            if units(y, x, recipe, UNIT["float32"])[0] > ALLOWED:
                expected = forward(Case(recipe, x.astype(np.float64)))
                return f"x = {compact(x)} (float32)\nexpected {compact(expected)}\ngot      {compact(y)}"
    except (TargetFailure, Unsupported, ValueError):
        return None
    return None


@check("numerics.overflow")
def overflow(setup: Setup) -> Finding:
    """float32 values above 1e19, whose squares are infinite."""
    if "float32" not in setup.subject.dtypes:
        return skip("the target takes no float32")
    layer, recipe = plain(setup, "float32")
    z = np.random.default_rng(17).normal(0, 1, setup.shape)
    for size in (1e18, 1e20, 1e30):
        x = (size * z).astype(np.float32)
        worst, off = units(layer.forward(x, True), x, recipe, UNIT["float32"])
        if worst > ALLOWED:
            return note(
                f"float32 values of about {size:g} give an output that is wrong by {off:.3g}: their squares overflow",
                "squares-overflow",
                size=size,
            )
    return passed("float32 values of 1e30 are normalized like any others")


@check("numerics.constant")
def constant(setup: Setup) -> Finding:
    """A constant input has no variance: the output is the bias, never NaN."""
    for dtype in ("float64", "float32"):
        layer, recipe = plain(setup, dtype)
        for value in (0.0, 1.0, -3.1, 1e4):
            x = np.full(setup.shape, value, dtype=dtype)
            y = layer.forward(x, True)
            if not np.all(np.isfinite(y)):
                return bug(
                    f"a constant input of {value:g} gives {np.asarray(y).reshape(-1)[0]}: the variance is 0 and eps "
                    "does not keep the division finite",
                    "nan-on-constant",
                    "sqrt(var + eps) > 0 for every input",
                    f"x = {value:g} everywhere, shape {setup.shape}, {dtype}",
                )
            if (
                setup.recipe.centers
                and units(y, x, recipe, UNIT["float32" if not setup.precise else dtype])[0] > ALLOWED
            ):
                return bug(
                    f"a constant input of {value:g} gives {np.abs(y).max():.3g} where the bias belongs",
                    "constant-not-zero",
                    "x - mean is 0 for a constant input",
                    f"x = {value:g} everywhere, shape {setup.shape}, {dtype}",
                )
    return passed("a constant input gives the bias")


@check("numerics.denormals")
def denormals(setup: Setup) -> Finding:
    layer, recipe = plain(setup, "float32")
    x = (1e-40 * np.random.default_rng(19).normal(0, 1, setup.shape)).astype(np.float32)
    y = layer.forward(x, True)
    if not np.all(np.isfinite(y)) or np.abs(y).max() > 1e-20 / np.sqrt(max(recipe.eps, 1e-38)):
        return bug(
            f"denormal input (1e-40) gives {np.abs(y).max():g}: it must give almost nothing",
            "denormals",
            "y = (x - mean) / sqrt(var + eps), eps far above the variance",
        )
    return passed("denormal input gives almost nothing")


@check("numerics.infinities")
def infinities(setup: Setup) -> Finding:
    """An infinite or NaN value spoils its own pool and nothing else."""
    layer, recipe = plain(setup, "float64")
    x = np.random.default_rng(23).normal(0, 1, setup.shape)
    own = np.zeros(recipe.to_grid(x).shape)
    own[tuple(slice(None) if a in recipe.axes else slice(0, 1) for a in range(4))] = 1.0
    others = recipe.from_grid(own, setup.shape) == 0
    if not others.any():
        return skip("every value is in one pool")
    for value in (np.inf, np.nan):
        spoiled = x.copy()
        spoiled[np.unravel_index(np.argmax(~others), setup.shape)] = value
        after = layer.forward(spoiled, True)
        if not np.all(np.isfinite(after[others])):
            return bug(
                f"one {value} in the input spoils values that it is not pooled with",
                "inf-spreads",
                "pool by reshaping and reducing; multiplying by a 0/1 matrix turns 0 * inf into NaN",
                f"x[0, ..] = {value}, shape {setup.shape}: other pools become NaN",
            )
    return passed("an infinite value spoils its own pool alone")


@check("numerics.precision")
def precision(setup: Setup) -> Finding:
    """float64 in, float64 out and inside."""
    layer = setup.subject.fresh()
    y = layer.forward(np.random.default_rng(7).normal(1.0, 2.0, setup.shape), True)
    if y.dtype != np.float64:
        return note(f"float64 input gives {y.dtype} output", "output-dtype")
    if not setup.precise:
        return note("float64 input is computed in float32", "float32-inside")
    low = setup.subject.fresh(dtype="float32")
    y32 = low.forward(np.random.default_rng(7).normal(1.0, 2.0, setup.shape).astype(np.float32), True)
    if y32.dtype != np.float32:
        return (bug if setup.subject.form.startswith("torch") else note)(
            f"float32 input gives {y32.dtype} output: a norm keeps the precision", "output-dtype"
        )
    return passed("the output has the input's precision")


def _half_problem(setup: Setup, dtype: str) -> Finding | None:
    """The worst half precision finding: wrong is a bug, statistics that are only rounded are a note."""
    layer, recipe = plain(setup, dtype)
    wide = _wide_shape(setup)
    rounded = None
    for what, mean, std, shape in (
        ("ordinary values", 0.0, 1.0, setup.shape),
        ("values of 1000 +- 30", 1000.0, 30.0, setup.shape),
        ("values of +- 600, whose squares exceed float16's 65504", 0.0, 600.0, setup.shape),
        (f"{np.prod(wide[2:])} positions of 30 +- 1", 30.0, 1.0, wide),
    ):
        x = _quantized(np.random.default_rng(29).normal(mean, std, shape), dtype)
        y = np.asarray(layer.forward(x, True), dtype=np.float64)
        expected = forward(Case(recipe, x.astype(np.float64)))
        off = float(np.abs(y - expected).max()) if np.all(np.isfinite(y)) else float("inf")
        size = 1 + float(np.abs(expected).max())
        if off <= 4 * UNIT[dtype] * size:
            continue
        if off <= 4 * UNIT[dtype] * size * (1 + mean / std):
            rounded = note(
                f"{dtype} statistics are rounded to {dtype}: off by {off:.3g} for {what}", "half-rounds-statistics"
            )
            continue
        overflow = not np.all(np.isfinite(y)) or np.abs(y).max() < 1e-2
        return bug(
            f"{dtype} output is wrong for {what}: error {off:.3g}; "
            + ("squares or sums overflow" if overflow else "statistics are computed")
            + f" in {dtype}, float32 is needed",
            "half-precision-statistics",
            "statistics in float32 whatever the input's precision; round once, at the end",
            f"x ~ N({mean:g}, {std:g}^2), shape {shape}, {dtype}",
        )
    return rounded


def _wide_shape(setup: Setup) -> tuple[int, ...]:
    """The main shape with many positions, so that sums grow long."""
    if setup.recipe.over == "trailing" or len(setup.shape) < 3:
        return setup.shape
    channel = setup.recipe.channel_axis % len(setup.shape)
    return tuple(2 if a == 0 else (s if a == channel else 24) for a, s in enumerate(setup.shape))


def _quantized(x: Array, dtype: str) -> NDArray[Any]:
    if dtype == "float16":
        return x.astype(np.float16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)  # bfloat16 values, held in float32


@check("numerics.half")
def half(setup: Setup) -> Finding:
    tested, refused = [], []
    torch_like = setup.subject.form.startswith(("torch", "Keras", "Flax"))
    for dtype in ("float16", "bfloat16"):
        if dtype not in setup.subject.dtypes:
            continue
        try:
            problem = _half_problem(setup, dtype)
        except TargetFailure as e:
            refused.append(f"{dtype}: {e}")
            continue
        if problem is not None:
            if not torch_like and problem.status == "bug":
                problem.status = "note"  # NumPy has no mixed precision to ask for
            return problem
        tested.append(dtype)
    if refused:
        return note("half precision is refused: " + "; ".join(refused), "half-refused")
    if not tested:
        return skip("the target takes no half precision")
    return passed(f"{' and '.join(tested)} are accumulated in float32")


@check("numerics.half-dtype")
def half_dtype(setup: Setup) -> Finding:
    """Half precision in, half precision out (torch Modules)."""
    layer = torch_layer(setup, dtype="bfloat16")
    import torch

    x = torch.randn(setup.shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    try:
        y = layer.run(x, True)
    except TargetFailure as e:
        return note(f"bfloat16 is refused: {e}", "half-refused")
    if y.dtype is not torch.bfloat16:
        return bug(
            f"bfloat16 input gives {y.dtype} output: a norm keeps the precision",
            "output-dtype",
            "return y.to(x.dtype)",
        )
    return passed("bfloat16 input gives bfloat16 output")


@check("numerics.gradient")
def gradient(setup: Setup) -> Finding:
    """dx in float32 at a large mean."""
    if not setup.subject.has_backward:
        return skip("the target has no backward pass")
    from normlab.check.oracle import input_gradient

    layer, recipe = plain(setup, "float32")
    for mean, std in ((0.0, 1.0), (100.0, 1.0), (1000.0, 1.0), (0.0, 1e-4)):
        x = np.random.default_rng(31).normal(mean, std, setup.shape).astype(np.float32)
        dy = np.random.default_rng(37).normal(0, 1, setup.shape).astype(np.float32)
        layer.forward(x, True)
        try:
            got = layer.backward(dy)["x"]
        except Unsupported as e:
            return skip(str(e))
        case = Case(recipe, x.astype(np.float64))
        expected = input_gradient(case, dy.astype(np.float64))
        allowed = 4 * ALLOWED * UNIT["float32"] * (1 + mean / std) * (np.abs(expected).max() + 1)
        off = np.abs(got - expected).max()
        if not off <= allowed and _forward_is_right(layer, x, recipe):
            return bug(
                f"dx in float32 is wrong at mean {mean:g}, std {std:g}: error {off:.3g}, "
                f"rounding explains {allowed:.3g}",
                "gradient-cancellation",
                "dx from xhat or x - mean; expanded sums of x * dy cancel",
            )
    return passed("dx in float32 stays within rounding")


def _forward_is_right(layer: Subject, x: NDArray[Any], recipe: Recipe) -> bool:
    return units(layer.forward(x, True), x, recipe, UNIT["float32"])[0] <= ALLOWED


@check("numerics.running")
def running(setup: Setup) -> Finding:
    """Running variance in float32 at a large mean."""
    if not setup.recipe.tracks:
        return skip("the layer keeps no running statistics")
    from normlab.check.oracle import updated_running

    layer, recipe = plain(setup, "float32")
    x = np.random.default_rng(41).normal(1000.0, 1.0, setup.shape).astype(np.float32)
    c = recipe.channels
    layer.set_running(np.zeros(c), np.ones(c))
    layer.forward(x, True)
    found = layer.running
    assert found is not None
    expected = updated_running(Case(recipe, x.astype(np.float64), running=(np.zeros(c), np.ones(c))))[1]
    off = float(np.abs(found[1] - expected).max())
    if not off <= 1e-3:
        return bug(
            f"running_var is wrong by {off:.3g} for inputs of 1000 +- 1 in float32: the variance cancels",
            "running-cancellation",
            CENTRED,
        )
    return passed("running_var is right for inputs of 1000 +- 1")


@check("numerics.long", slow=True)
def long_sums(setup: Setup) -> Finding:
    """Many positions with a large mean: sums of 100000 values in float32."""
    wide = tuple(s * 4 if s == 24 else s for s in _wide_shape(setup))
    if wide == setup.shape:
        return skip("the input has no positions to multiply")
    layer, recipe = plain(setup, "float32")
    x = np.random.default_rng(43).normal(1000.0, 1.0, wide).astype(np.float32)
    n, worst = units(layer.forward(x, True), x, recipe, UNIT["float32"])
    if n > 2 * ALLOWED:
        return bug(
            f"float32 sums over {np.prod(wide[2:])} positions of 1000 +- 1 are wrong: error {worst:.3g}",
            "long-sums",
            "sum pairwise, in blocks, or in float64",
        )
    return passed(f"long sums stay within {n:.3g} rounding units")


@check("numerics.huge", slow=True)
def huge(setup: Setup) -> Finding:
    """As many elements as asked for: past 2^31, 32-bit indices overflow."""
    if setup.elements is None:
        return skip("on request: --elements 2200000000 (needs about 9 bytes of memory per element)")
    if setup.recipe.over == "trailing":
        return skip("for norms over channels alone")
    import torch

    layer = torch_layer(setup, dtype="float32")
    period, c = 1 << 12, setup.recipe.channels
    side = max(1, -(-setup.elements // (2 * c * period)))
    spatial = (side, period) if 4 in setup.shapes else (side * period,)
    tile = torch.from_numpy(np.random.default_rng(47).normal(1.0, 2.0, (c, period)).astype(np.float32))
    x = torch.empty((2, c, *spatial))
    x.view(2, c, side, period)[:] = tile[None, :, None, :]
    with torch.no_grad():
        y = layer.run(x, True).view(2, c, side, period)
    small = tile.numpy().astype(np.float64).reshape(1, c, *[1] * (len(spatial) - 1), period)
    expected = forward(Case(setup.recipe, small)).reshape(c, period)
    off = max(float(np.abs(y[n, :, s].numpy() - expected).max()) for n in (0, 1) for s in (0, side // 2, side - 1))
    if not off < 1e-3:
        return bug(f"wrong by {off:.3g} for {x.numel():,} elements", "index-overflow", "64-bit indices")
    return passed(f"right for {x.numel():,} elements", error=off)
