"""What dialect a layer speaks: inferred by probing it, then turned into the recipe that it is held to.

Frameworks differ in how they call the same thing (momentum on the old value or on the new one, eps, whether the
running variance is biased). The probe measures what the layer does; what it *should* do follows from what it
declares (its `momentum` and `eps`), from what it is written as, and from the dialect that the user names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.oracle import KINDS, Recipe
from normlab.check.subjects import Subject, TargetFailure
from normlab.errors import UsageError


@dataclass(frozen=True)
class Dialect:
    """A framework's conventions: momentum as it is written there, where it weighs, eps, running variance."""

    momentum: float
    weighs_new: bool
    eps: float
    unbiased: bool


DIALECTS = {
    "torch": Dialect(0.1, True, 1e-5, True),
    "keras": Dialect(0.99, False, 1e-3, False),
    "onnx": Dialect(0.9, False, 1e-5, False),
    "flax": Dialect(0.99, False, 1e-5, False),
    "teaching": Dialect(0.9, False, 1e-5, False),
}


@dataclass
class Setup:
    """A subject with the recipe it is held to and the shapes it takes; what every check works from."""

    subject: Subject
    recipe: Recipe
    shape: tuple[int, ...]
    shapes: dict[int, tuple[int, ...]]
    precise: bool
    described: dict[str, Any]
    quick: bool = False
    elements: int | None = None

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(2024)

    @property
    def tolerance(self) -> float:
        """Relative error that rounding explains, in the precision that the layer computes in."""
        return max(1e-8 if self.precise else 2e-4, self.subject.rounding)

    def tolerance_in(self, training: bool) -> float:
        """The same in one mode: running statistics that stay in float32 cost evaluation its precision."""
        coarse = not training and getattr(self.subject.fresh(), "stores_float32", False)
        return max(self.tolerance, 1e-5 if coarse else 0.0)


def candidate_shapes(subject: Subject, kind: str | None, over: str) -> dict[int, tuple[int, ...]]:
    """Rank -> a shape with sizes that differ from each other, for ranks 4, 2, 3 and 5."""
    c = subject.options.channels
    if over == "trailing":
        tail = _tail(subject)
        leads = {len(tail) + 1: (7,), len(tail) + 2: (5, 4), len(tail) + 3: (5, 4, 3)}
        return {rank: (*lead, *tail) for rank, lead in leads.items()}
    # no other axis may have the channels' size: an input without a batch axis would pass for one with it
    a, b, d = [s for s in (4, 3, 2, 5) if s != c][:3]
    spatial = {4: (a, b), 2: (), 3: (a,), 5: (d, b, d)}
    batch = {rank: n + 1 if n == c else n for rank, n in {4: 5, 2: 7, 3: 5, 5: 3}.items()}
    if subject.channel_axis == -1:
        return {rank: (batch[rank], *s, c) for rank, s in spatial.items()}
    return {rank: (batch[rank], c, *s) for rank, s in spatial.items()}


def _tail(subject: Subject) -> tuple[int, ...]:
    for value in subject.parameters.values():
        return tuple(n for n in value.shape if n > 1) or tuple(value.shape) or (subject.options.channels,)
    shape = getattr(getattr(subject, "module", None), "normalized_shape", None)
    return tuple(shape) if isinstance(shape, (tuple, list)) else (subject.options.channels,)


def accepted(subject: Subject, shapes: dict[int, tuple[int, ...]]) -> tuple[dict[int, tuple[int, ...]], list[str]]:
    """The shapes that the layer takes in training, and what it said to the others."""
    taken, refused = {}, []
    for rank, shape in shapes.items():
        try:
            subject.fresh().forward(np.random.default_rng(1).normal(1, 2, shape), True)
            taken[rank] = shape
        except TargetFailure as e:
            refused.append(f"shape {shape}: {e}")
    return taken, refused


def known(kind: str | None, dialect: str) -> None:
    """Raise UsageError for a kind or a dialect that there is not."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--as {kind!r}: expected one of {', '.join(KINDS)}")
    if dialect != "auto" and dialect not in DIALECTS:
        raise UsageError(f"--dialect {dialect!r}: expected auto or one of {', '.join(DIALECTS)}")


def prepare(subject: Subject, kind: str | None = None, dialect: str = "auto", quick: bool = False) -> Setup:
    """Probe the subject; raises TargetFailure when it answers no input, UsageError for unknown names."""
    from normlab.check.subjects.base import kind_from_name

    known(kind, dialect)
    named = kind or kind_from_name(subject.name) or kind_from_name(type(getattr(subject, "module", None)).__name__)
    shapes, refused, over = _shapes(subject, named)
    if not shapes:
        raise TargetFailure("takes no input: " + "; ".join(refused[:2]))
    shape = max(shapes.values(), key=len) if 4 not in shapes else shapes[4]
    layout = Recipe(
        named or "batch",
        int(np.prod(shape[-len(_tail(subject)) :])) if over == "trailing" else subject.options.channels,
        groups=subject.options.groups,
        channel_axis=subject.channel_axis,
        over=over,
        trailing=len(_tail(subject)),
    )
    depends = dependence(subject, shape, layout)
    found = kind_by_dependence(depends, subject, shape)
    if named is None:
        if found is None:
            raise UsageError(
                f"cannot tell which norm {subject.name} is (it pools over {depends}); name it with --as, "
                f"one of {', '.join(KINDS)}"
            )
        layout = replace(layout, kind=found)
    recipe = replace(layout, over=_over(layout, depends, over))
    precise = _is_precise(subject, shape)
    recipe, described = _measure(subject, recipe, shape, dialect)
    if recipe.kind in ("layer", "rms") and subject.form.startswith("NumPy"):
        shapes = _meant(subject, recipe, shapes)
        shape = shapes[max(shapes)]
    described = {
        "norm": recipe.kind + ("" if named else " (told by what it pools)"),
        "input": ", ".join(str(s) for s in sorted(shapes.values(), key=len)),
        "pools over": depends,
        **described,
    }
    return Setup(subject, recipe, shape, shapes, precise, described, quick)


def _meant(subject: Subject, recipe: Recipe, shapes: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """A NumPy layer norm of (N, D) takes more axes without an error and means nothing by it: keep what is right."""
    from normlab.check.diagnose import error
    from normlab.check.oracle import Case, forward

    def right(shape: tuple[int, ...]) -> bool:
        x = np.random.default_rng(9).normal(1, 2, shape)
        return error(subject.fresh().forward(x, True), forward(Case(recipe, x))) < 1e-4

    return {rank: s for rank, s in shapes.items() if rank == min(shapes) or right(s)}


def _shapes(subject: Subject, kind: str | None) -> tuple[dict[int, tuple[int, ...]], list[str], str]:
    """Shapes that are taken, refusals, and whether channels trail (layer and RMS norm of torch's kind)."""
    shapes, refused = accepted(subject, candidate_shapes(subject, kind, "sample"))
    if kind in ("layer", "rms", None) and (set(shapes) <= {2} or any(p.ndim > 1 for p in subject.parameters.values())):
        trailing, more = accepted(subject, candidate_shapes(subject, kind, "trailing"))
        if len(trailing) > len(shapes) or (trailing and not shapes) or (kind and trailing):
            return trailing, more, "trailing"
        refused += more
    style = getattr(subject, "style", None)
    if not shapes and style is not None:  # some assignments keep gamma as (1, C, 1, 1)
        style.parameter_ndim = 4
        shapes, _ = accepted(subject, {4: candidate_shapes(subject, kind, "sample")[4]})
    return shapes, refused, "sample"


def dependence(subject: Subject, shape: tuple[int, ...], recipe: Recipe) -> str:
    """Which inputs an output depends on in training, in words: "batch, positions" and the like."""
    layer = subject.fresh()
    x = np.random.default_rng(3).normal(1.0, 2.0, shape)
    base = np.asarray(layer.forward(x, True), dtype=np.float64)
    moved = x.copy()
    moved[(0,) * x.ndim] += 0.5
    changed = np.abs(subject.fresh().forward(moved, True) - base) > 1e-7
    channel = x.ndim - 1 if recipe.over == "trailing" else recipe.channel_axis % x.ndim
    reached = np.argwhere(changed)
    if len(reached) == 0:
        return "nothing"
    parts = []
    if recipe.over == "trailing" and recipe.kind in ("layer", "rms"):
        names = [f"axis {a - x.ndim}" for a in range(x.ndim)]
        parts = [names[a] for a in range(x.ndim) if reached[:, a].max() > 0]
    else:
        if reached[:, 0].max() > 0:
            parts.append("the batch")
        span = np.unique(reached[:, channel])
        if len(span) == shape[channel]:
            parts.append("all channels")
        elif len(span) > 1:
            parts.append("channels " + ", ".join(map(str, span)))
        if any(reached[:, a].max() > 0 for a in range(1, x.ndim) if a != channel):
            parts.append("positions")
    return " and ".join(parts) if parts else "nothing"


def kind_by_dependence(depends: str, subject: Subject, shape: tuple[int, ...]) -> str | None:
    """The kind whose pool that is."""
    spatial = len(shape) > 2
    pools_batch = "the batch" in depends
    if pools_batch and "channels" not in depends and ("positions" in depends or not spatial):
        return "batch-instance" if "gate" in subject.parameters else "batch"
    if pools_batch:
        return None
    layer = subject.fresh()
    x = np.random.default_rng(5).normal(0, 1, shape)
    shifted = np.abs(layer.forward(x + 3.0, True) - layer.forward(x, True)).max() > 1e-3
    if depends.startswith("axis") or "all channels" in depends:
        return "rms" if shifted else "layer"
    if "channels" in depends:
        return "group"
    return "instance" if "positions" in depends else None


def _over(recipe: Recipe, depends: str, over: str) -> str:
    if recipe.kind not in ("layer", "rms") or over == "trailing":
        return over if recipe.kind in ("layer", "rms") else "sample"
    return "channels" if depends == "all channels" else "sample"


def _is_precise(subject: Subject, shape: tuple[int, ...]) -> bool:
    """Whether the layer computes in float64: its output then does not fit float32."""
    y = subject.fresh().forward(np.random.default_rng(7).normal(1.0, 2.0, shape), True)
    if y.dtype != np.float64:
        return False
    with np.errstate(over="ignore"):
        return bool(np.any(y.astype(np.float32).astype(np.float64) != y)) or not np.any(y)


@dataclass(frozen=True)
class Gain:
    """How the output shrinks with the variance v: 1/gain^2 = slope * v + eps (inside), or outside the root."""

    eps: float
    placement: str
    slope: float


def measure_gain(subject: Subject, recipe: Recipe, shape: tuple[int, ...], dtype: Any = np.float64) -> Gain | None:
    """Fit eps, its place and the divisor from outputs at several variances; None when neither form fits."""
    layer = subject.fresh()
    layer.set_parameters(
        {r: np.zeros(v.shape) if r == "bias" else np.ones(v.shape) for r, v in layer.parameters.items()}
    )
    z = np.random.default_rng(11).normal(0, 1, shape)
    inverse, variance = [], []
    grid = recipe.to_grid(z)
    axes = recipe.axes
    for scale in (1e-3, 4e-3, 1.6e-2, 6.4e-2):
        x = (z * scale).astype(dtype)
        y = recipe.to_grid(np.asarray(layer.forward(x, True)))
        grid = recipe.to_grid(x)
        mean = grid.mean(axis=axes, keepdims=True) if recipe.centers else 0.0
        v = ((grid - mean) ** 2).mean(axis=axes, keepdims=True)
        spread = y.var(axis=axes, keepdims=True) if recipe.centers else (y**2).mean(axis=axes, keepdims=True)
        first = (0,) * 4
        if not spread[first] > 0 or not np.isfinite(spread[first]):
            return None
        inverse.append(np.sqrt(v[first] / spread[first]))
        variance.append(v[first])
    root, inv, v = np.sqrt(variance), np.array(inverse), np.array(variance)
    inside = _line(v, inv**2)
    outside = _line(root, inv)
    fits = (("inside the root", inside), ("outside the root", outside))
    for tight in (1e-7, 1e-4):  # a layer that computes in float32 fits loosely
        for placement, (slope, intercept, misfit) in fits:
            if misfit < tight and 0.3 < slope < 3:
                return Gain(float(max(intercept, 0.0)), placement, float(slope))
    return None


def _line(x: NDArray, y: NDArray) -> tuple[float, float, float]:
    """Slope, intercept and largest relative misfit of y = slope * x + intercept, weighted by 1 / y."""
    design = np.stack([x, np.ones_like(x)], 1) / y[:, None]
    (slope, intercept), *_ = np.linalg.lstsq(design, np.ones_like(x), rcond=None)
    return slope, intercept, float(np.abs((slope * x + intercept) / y - 1).max())


def _measure(subject: Subject, recipe: Recipe, shape: tuple[int, ...], dialect: str) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with eps, momentum and running variance settled, and the measurements in words."""
    declared = subject.declared
    described: dict[str, Any] = {}
    gain = measure_gain(subject, recipe, shape)
    home = dialect if dialect != "auto" else subject.home
    eps = declared.get("eps")
    if eps is None:
        eps = gain.eps if gain and gain.placement.startswith("inside") and gain.eps > 0 else DIALECTS[home].eps
        if gain:
            usual = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 2.0**-52, 2.0**-23)
            near = [e for e in usual if abs(gain.eps / e - 1) < 1e-3]
            eps = near[0] if near and gain.placement.startswith("inside") else eps
    described["eps"] = f"{gain.eps:.3g} {gain.placement}" if gain else "not to be measured"
    if gain and abs(gain.slope - 1) > 1e-4:
        described["normalizes by"] = f"{gain.slope:.6g} times the biased variance"
    recipe = replace(recipe, eps=eps)
    state = subject.fresh().running
    described["affine"] = ", ".join(f"{r} {v.shape}" for r, v in subject.parameters.items()) or "none"
    if state is None or recipe.kind not in ("batch", "instance", "batch-instance"):
        described["running statistics"] = "none"
        return recipe, described
    measured = measure_running(subject, recipe, shape)
    if measured is None:
        described["running statistics"] = "kept, but their update follows no convention"
    else:
        weight, factor, count = measured
        unbiased = abs(factor - count / (count - 1)) < abs(factor - 1)
        described["momentum"] = f"{weight:.4g} on the new batch, {1 - weight:.4g} on the old"
        described["running variance"] = "unbiased (n - 1)" if unbiased else "biased (n)"
    new_weight, is_unbiased, speaks = _expected(declared.get("momentum"), measured, home, dialect)
    described["held to"] = (
        f"{speaks}: {new_weight:.4g} on the new batch, {'unbiased' if is_unbiased else 'biased'} running variance"
    )
    return replace(recipe, tracks=True, momentum=new_weight, unbiased_running_var=is_unbiased), described


def measure_running(subject: Subject, recipe: Recipe, shape: tuple[int, ...]) -> tuple[float, float, int] | None:
    """Weight of the new batch, running variance / biased variance, and count; None where no blend fits."""
    layer = subject.fresh()
    c = recipe.channels
    layer.set_running(np.full(c, 3.0), np.full(c, 5.0))
    x = np.random.default_rng(13).normal(0, 1, shape) * 2 - 4
    layer.forward(x, True)
    after = layer.running
    assert after is not None
    grid = recipe.to_grid(x)
    axes = (0, 2, 3) if recipe.kind != "instance" else (2, 3)
    mean = grid.mean(axis=axes, keepdims=True).mean(axis=0).reshape(-1)
    var = grid.var(axis=axes, keepdims=True).mean(axis=0).reshape(-1)
    weight = (after[0] - 3.0) / (mean - 3.0)
    if np.ptp(weight) > 1e-3 or abs(weight[0]) < 1e-9:
        return None
    factor = (after[1] - 5.0 * (1 - weight)) / (weight * var)
    count = int(np.prod([grid.shape[a] for a in axes]))
    if np.ptp(factor) > 1e-3:
        return None
    return float(weight.mean()), float(factor.mean()), count


def _expected(
    declared: float | None, measured: tuple[float, float, int] | None, home: str, dialect: str
) -> tuple[float, bool, str]:
    """Weight of the new batch, unbiased or not, and whose convention that is."""
    convention = DIALECTS[home]
    if dialect == "auto" and declared is not None and home == "torch" and declared > 0.5:
        # a torch Module that declares 0.9 or 0.99 writes momentum on the old value, as everybody but torch does
        name = "keras" if declared >= 0.985 else "onnx"
        return 1 - declared, DIALECTS[name].unbiased, f"{name} (momentum {declared:g} on the old)"
    if declared is None and measured is not None and dialect == "auto" and 0 < measured[0] <= 0.5:
        return measured[0], convention.unbiased, home
    momentum = convention.momentum if declared is None else declared
    return (momentum if convention.weighs_new else 1 - momentum), convention.unbiased, home
