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

from normlab.check.oracle import RIGHT, Recipe, Stages
from normlab.check.pools import PER_SAMPLE, Reach, computes_in_float64, inputs_of, kind_of, over_of, reach, tail_of
from normlab.check.relatives import NAMES, as_relative, base_of
from normlab.check.subjects import Subject, TargetFailure, Unsupported
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


FREE = " (free to choose)"


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
    strict: bool = False
    free_variance: bool = False  # nothing promises which running variance is stored, and it was not to be measured
    written: Stages = RIGHT  # the forward pass as it was found to be written in training, slips and all

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


def known(kind: str | None, dialect: str) -> None:
    """Raise UsageError for a kind or a dialect that there is not."""
    base_of(kind)
    if dialect != "auto" and dialect not in DIALECTS:
        raise UsageError(f"--dialect {dialect!r}: expected auto or one of {', '.join(DIALECTS)}")


def prepare(subject: Subject, kind: str | None = None, dialect: str = "auto", quick: bool = False) -> Setup:
    """Probe the subject; raises TargetFailure when it takes no input, UsageError for unknown names."""
    from normlab.check.subjects.base import kind_from_name
    from normlab.check.subjects.claims import claim

    known(kind, dialect)
    named = base_of(kind) or kind_from_name(subject.name) or kind_from_name(subject.class_name)
    inputs = inputs_of(subject, named)
    subject.channel_axis = inputs.channel_axis
    shapes = _both_ways(subject, inputs.shapes)
    if named in ("instance", "batch-instance") and len(shapes) > 1:
        shapes.pop(2, None)  # without positions there is no instance to pool, and nothing that is right
    shape = _main(shapes)
    claim(subject, shape, named)
    tail = tail_of(subject)
    trailing = inputs.over == "trailing"
    layout = Recipe(
        named or "batch",
        int(np.prod(shape[-len(tail) :])) if trailing else subject.options.channels,
        groups=subject.options.groups,
        channel_axis=subject.channel_axis,
        over=inputs.over,
        trailing=len(tail),
    )
    found = reach(subject, shape, -1 if trailing else subject.channel_axis)
    if named is None:
        told = kind_of(found, subject)
        if told is None:
            raise UsageError(
                f"cannot tell which norm {subject.name} is (it pools over {found.words(layout)}); name it with --as, "
                f"one of {', '.join(NAMES)}"
            )
        layout = replace(layout, kind=told)
    layout = as_relative(kind, _grouped(layout, found, subject))
    recipe = replace(layout, over=over_of(layout, found))
    precise = computes_in_float64(subject, shape)
    recipe, described = _measure(subject, recipe, shape, dialect)
    if recipe.kind in PER_SAMPLE and subject.form != "torch Module":
        shapes = _keep_meaningful(subject, recipe, shapes)
        shape = _main(shapes)
        found = reach(subject, shape, -1 if trailing else subject.channel_axis)
    described = {
        "norm": (f"{kind}: {recipe.formula}" if recipe.formula else recipe.kind)
        + ("" if named else " (told by what it pools)"),
        "input": ", ".join(str(s) for s in sorted(shapes.values(), key=len)),
        "pools over": found.words(recipe),
        **described,
    }
    free = recipe.tracks and described["held to"].endswith(FREE) and "momentum" not in described
    return Setup(subject, recipe, shape, shapes, precise, described, quick, free_variance=free)


def _main(shapes: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that most checks use: of rank 4 where the layer takes that."""
    return shapes[4] if 4 in shapes else shapes[max(shapes)]


def _both_ways(subject: Subject, shapes: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """The ranks that a hand-written backward pass takes, too: of others the forward pass may mean nothing."""
    if subject.form == "torch Module" or not subject.has_backward or len(shapes) == 1:
        return shapes

    def backed(shape: tuple[int, ...]) -> bool:
        layer = subject.fresh()
        x = np.random.default_rng(17).normal(1, 2, shape)
        try:
            layer.forward(x, True)
            layer.backward(x)
        except TargetFailure:
            return False
        except Unsupported:
            return True
        return True

    return {rank: shape for rank, shape in shapes.items() if backed(shape)} or shapes


def _grouped(layout: Recipe, found: Reach, subject: Subject) -> Recipe:
    """A group norm that is not asked for a number of groups has the one that it shows."""
    if layout.kind != "group" or "groups" in subject.settable or getattr(subject, "declares_groups", True):
        return layout
    size = len(found.channels)
    neighbours = found.channels == tuple(range(size))
    if neighbours and layout.channels % size == 0 and not found.batch:
        return replace(layout, groups=layout.channels // size)
    return layout


def _keep_meaningful(
    subject: Subject, recipe: Recipe, shapes: dict[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """A layer norm of (N, D) takes more axes without an error and means nothing by it: keep what is right."""
    from normlab.check.diagnose import error, relative_error
    from normlab.check.oracle import Case, forward, input_gradient

    def right(shape: tuple[int, ...]) -> bool:
        layer, rng = subject.fresh(), np.random.default_rng(9)
        case, dy = Case(recipe, rng.normal(1, 2, shape)), rng.normal(0, 1, shape)
        if error(layer.forward(case.x, True), forward(case)) > 1e-4:
            return False
        if not subject.has_backward or subject.form == "function":
            return True
        try:
            return relative_error(layer.backward(dy)["x"], input_gradient(case, dy)) < 1e-4
        except (TargetFailure, Unsupported):
            return False

    return {rank: s for rank, s in shapes.items() if rank == min(shapes) or right(s)}


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


def _line(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float, float]:
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
            eps = near[0] if near else eps
    described["eps"] = f"{gain.eps:.3g} {gain.placement}" if gain else "not to be measured"
    if gain and abs(gain.slope - 1) > 1e-4:
        pool = recipe.to_grid(np.zeros(shape)).shape
        count = int(np.prod([pool[a] for a in recipe.axes]))
        unbiased = count > 1 and abs(gain.slope - count / (count - 1)) < 1e-3 * gain.slope
        described["normalizes by"] = (
            f"the unbiased variance (n - 1 = {count - 1})" if unbiased else "not the biased variance of this pool"
        )
    recipe = replace(recipe, eps=eps)
    described["affine"] = ", ".join(f"{r} {v.shape}" for r, v in subject.parameters.items()) or "none"
    if subject.habits.weight_offset:
        described["affine"] += "; 1 + weight is applied, as in Gemma: it starts from zero"
    if subject.habits.roles:
        found = ", ".join(f"{name} is the {role.replace('_', ' ')}" for name, role in subject.habits.roles.items())
        described["told by their effect"] = found
    if not subject.fresh().tracks or recipe.kind not in ("batch", "instance", "batch-instance"):
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
    held = _expected_running(subject, measured, home, dialect)
    if subject.cumulative:
        described["momentum"] = "None: the average over all batches so far"
    described["held to"] = (
        f"{held.speaks}: {held.new_weight:.4g} on the new batch, "
        f"{'unbiased' if held.unbiased else 'biased'} running variance" + (FREE if held.free else "")
    )
    recipe = replace(recipe, tracks=True, momentum=held.new_weight, unbiased_running_var=held.unbiased)
    return replace(recipe, cumulative=subject.cumulative), described


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
    centre = grid.mean(axis=axes, keepdims=True) * recipe.centers
    mean = centre.mean(axis=0).reshape(-1)
    var = ((grid - centre) ** 2).mean(axis=axes, keepdims=True).mean(axis=0).reshape(-1)
    weight = (after[0] - 3.0) / (mean - 3.0)
    if np.ptp(weight) > 1e-3 or abs(weight[0]) < 1e-9:
        return None
    factor = (after[1] - 5.0 * (1 - weight)) / (weight * var)
    count = int(np.prod([grid.shape[a] for a in axes]))
    if np.ptp(factor) > 1e-3:
        return None
    return float(weight.mean()), float(factor.mean()), count


@dataclass(frozen=True)
class Held:
    """The update that a layer is held to: weight of the new batch, kind of variance, and whose convention that is."""

    new_weight: float
    unbiased: bool
    speaks: str
    free: bool = False


def _expected_running(subject: Subject, measured: tuple[float, float, int] | None, home: str, dialect: str) -> Held:
    """What the running statistics ought to do: as the dialect says, else as the layer's own words promise.

    A declared momentum of at most 0.5 weighs the new batch, a larger one the old, in any library. The variance is
    torch's where the layer calls its statistics as torch does, and the course's in an assignment's pair; a layer
    under other names may store either.
    """
    convention = DIALECTS[home]
    declared = subject.declared.get("momentum")
    if dialect != "auto" and not subject.cumulative:
        momentum = convention.momentum if declared is None else declared
        return Held(momentum if convention.weighs_new else 1 - momentum, convention.unbiased, home)
    weight, speaks = _weight(subject, declared, measured, convention, home)
    promised = _promised_variance(subject, declared, home)
    if promised is not None:
        return Held(weight, promised, speaks)
    if measured is None:
        return Held(weight, convention.unbiased, speaks, free=True)
    _, factor, count = measured
    unbiased = abs(factor - count / max(count - 1, 1)) < 1e-3 * factor
    return Held(weight, unbiased, speaks, free=True)


def _weight(
    subject: Subject, declared: float | None, measured: tuple[float, float, int] | None, convention: Dialect, home: str
) -> tuple[float, str]:
    """The weight of the new batch, and whose reading of momentum that is."""
    if subject.cumulative:
        return 1.0, home
    if declared is None:
        plausible = measured is not None and 0 < measured[0] <= 0.5
        usual = convention.momentum if convention.weighs_new else 1 - convention.momentum
        return (measured[0] if plausible and measured is not None else usual), home
    if subject.free_momentum and measured is not None and abs(measured[0] - (1 - declared)) < 1e-6:
        return 1 - declared, f"{home} (momentum on the old, as its callers hand it)"
    if declared <= 0.5:
        return declared, "torch" if home == "torch" else f"{home}, momentum as torch writes it"
    if home == "torch":
        return 1 - declared, f"{'keras' if declared >= 0.985 else 'onnx'} (momentum {declared:g} on the old)"
    return 1 - declared, home


def _promised_variance(subject: Subject, declared: float | None, home: str) -> bool | None:
    """Whether the running variance must be unbiased; None where nothing that the layer says promises either."""
    if home in ("keras", "flax", "onnx"):
        return DIALECTS[home].unbiased
    if subject.form == "NumPy forward/backward pair":
        return False if "config" in getattr(subject, "roles", {}) else None
    as_torch = subject.cumulative or (declared is not None and declared <= 0.5)
    if subject.form == "torch Module":
        names = [n.rpartition(".")[2] for n in getattr(subject, "running_names", [])]
        return True if as_torch and set(names) == {"running_mean", "running_var"} else None
    if subject.form == "function" and home == "torch":
        names = [subject.roles.get(r) for r in ("running_mean", "running_var")]  # type: ignore[attr-defined]
        return True if as_torch and names == ["running_mean", "running_var"] else None
    if subject.form == "NumPy layer object" and declared is not None and declared > 0.5:
        return False
    return None
