"""Gradients: the backward pass against the oracle and, where they differ, against the layer's own forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.checks.values import counted
from normlab.check.diagnose import Observation, explain_gradient, relative_error
from normlab.check.dialect import Setup
from normlab.check.oracle import RIGHT as NO_SLIP
from normlab.check.oracle import Array, Case, input_gradient, parameter_gradients
from normlab.check.probe import bug, check, compact, fresh, load, note, passed, sample, shapes, skip, small
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported

FORMULAS = {
    "x": "dx = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps), g = weight * dy",
    "weight": "dweight = sum(dy * xhat)",
    "bias": "dbias = sum(dy)",
    "gate": "dgate = sum(dy * weight * (xhat_batch - xhat_instance))",
}


def numeric_gradient(layer: Subject, case: Case, dy: Array, of: str) -> Array:
    """Central differences of the layer's own output, one entry of the input or of a parameter at a time."""

    def loss() -> float:
        if case.running is not None:
            layer.set_running(*case.running)
        return float((np.asarray(layer.forward(x, case.training), dtype=np.float64) * dy).sum())

    x = np.array(case.x)
    values = {r: np.array(v, dtype=np.float64).reshape(-1) for r, v in layer.parameters.items()}
    moved = x.reshape(-1) if of == "x" else values[of]
    step = 1e-6 * max(float(np.ptp(x)), 1e-6) if of == "x" else 1e-6
    out = np.zeros(moved.size)
    for i in range(moved.size):
        here, sides = moved[i], []
        for sign in (1, -1):
            moved[i] = here + sign * step
            if of != "x":
                layer.set_parameters(values)
            sides.append(loss())
        moved[i] = here
        out[i] = (sides[0] - sides[1]) / (2 * step)
    layer.set_parameters(values)
    return out.reshape(case.x.shape) if of == "x" else out


def observe(setup: Setup, training: bool) -> dict[str, list[Observation]]:
    """Gradients beside the oracle's: each rank, and small variance (where eps shows)."""
    seen: dict[str, list[Observation]] = {}
    inputs = [(s, 2.0) for s in shapes(setup)] + [(setup.shape, small(setup.recipe))]
    for seed, (shape, scale) in enumerate(inputs):
        layer = fresh(setup, shape)
        case = load(setup, layer, sample(shape, scale, seed=seed), training, seed)
        layer.forward(case.x, training)
        dy = sample(shape, 1.0, 0.3, seed=seed + 50)
        got = layer.backward(dy)
        right = {"x": input_gradient(case, dy), **parameter_gradients(case, dy)}
        for of, expected in right.items():
            if of in got:
                seen.setdefault(of, []).append(Observation(case, got[of], expected, dy))
            elif of in layer.parameters:
                raise TargetFailure(f"answers no gradient of {of}")
    return seen


def judge(setup: Setup, training: bool) -> Finding:
    """Compare all gradients in one mode; several that are wrong are reported together."""
    if not setup.subject.has_backward:
        return skip("the target has no backward pass")
    if training or not _trains_only(setup):
        return _judge(setup, training)
    try:
        finding = _judge(setup, training)
    except TargetFailure as e:
        return skip(f"the convention has no backward pass in evaluation, and here it {e}")
    if finding.status == "bug":
        finding.status = "note"
        finding.message += "; the convention asks for no backward pass in evaluation"
    return finding


def _trains_only(setup: Setup) -> bool:
    """Whether the target is of a course, where backward is called after training alone."""
    roles = getattr(setup.subject, "roles", {})
    pair = setup.subject.form.startswith("NumPy forward") and "config" in roles
    return (pair or setup.subject.form == "NumPy layer object") and not setup.strict


def _judge(setup: Setup, training: bool) -> Finding:
    mode = "training" if training else "evaluation"
    tolerance = setup.tolerance_in(training) * (10 if setup.precise else 5)
    worst = 0.0
    try:
        seen = observe(setup, training)
    except Unsupported as e:
        return skip(str(e))
    wrong: list[Finding] = []
    for of, observations in seen.items():
        errors = [relative_error(o.got, o.right) for o in observations]
        if max(errors) <= tolerance:
            worst = max(worst, *errors)
            continue
        first = observations[int(np.argmax(errors))]
        if setup.precise and _follows_own_forward(setup, first, of):
            continue  # the forward pass is at fault, and its own check says so
        trained = training or not first.case.uses_running
        as_written = _explain_by_forward(setup, of, observations) if trained else None
        if as_written and max(relative_error(o.got, o.right) for o in as_written) <= tolerance:
            continue  # it is the right backward pass of what that forward pass kept
        example = _example(setup, training, of)
        wrong.append(_explain(of, mode, observations, as_written, tolerance, max(errors), example))
    if wrong:
        return _merge_findings(wrong)
    return passed(f"gradients in {mode} are right: {', '.join(seen)}", error=worst)


def _explain_by_forward(setup: Setup, of: str, seen: list[Observation]) -> list[Observation] | None:
    """The same gradients beside those of the forward pass as it is written, slips and all; None where it has none."""
    if setup.written == NO_SLIP:
        return None
    out = []
    for o in seen:
        assert o.dy is not None
        case = replace(o.case, stages=replace(setup.written, inner=None, outer=None))
        right = input_gradient(case, o.dy) if of == "x" else parameter_gradients(case, o.dy)[of]
        out.append(Observation(case, o.got, right, o.dy))
    return out


def _explain(
    of: str,
    mode: str,
    seen: list[Observation],
    as_written: list[Observation] | None,
    tolerance: float,
    worst: float,
    example: str | None,
) -> Finding:
    name = {"x": "dx"}.get(of, f"d{of}")
    slip = (explain_gradient(of, as_written, tolerance) if as_written else None) or explain_gradient(
        of, seen, tolerance
    )
    if slip is None and as_written:
        return bug(
            f"{name} in {mode} is wrong, too; the forward pass is wrong already: mend that first, and check again",
            None,
            FORMULAS[of],
            example,
        )
    if slip is None:
        return bug(
            f"{name} in {mode} is wrong by {worst:.3g} (relative); no known slip explains it",
            f"unexplained-{name}",
            FORMULAS[of],
            example,
        )
    return bug(f"{name} in {mode} is wrong: {counted(slip)}", slip.cause, slip.formula, example, error=worst)


def _merge_findings(wrong: list[Finding]) -> Finding:
    """One finding for all wrong gradients of a mode; its cause names them all, what is explained first."""
    named = [f for f in wrong if f.cause and not f.cause.startswith("unexplained")]
    wrong = [*named, *(f for f in wrong if f not in named)]
    first = wrong[0]
    if len(wrong) > 1:
        first.message = (f"{len(named)} slips: " if len(named) > 1 else "") + "; ".join(f.message for f in wrong)
        first.cause = " + ".join(dict.fromkeys(f.cause or "" for f in named or wrong[:1])) or None
        first.formula = "; ".join(dict.fromkeys(f.formula for f in wrong if f.formula))
        first.example = "\n".join(f.example for f in wrong if f.example) or None
    return first


def _follows_own_forward(setup: Setup, seen: Observation, of: str) -> bool:
    case = seen.case
    layer = fresh(setup, case.x.shape)
    layer.set_parameters(
        {r: v for r, v in (("weight", case.weight), ("bias", case.bias), ("gate", case.gate)) if v is not None}
    )
    assert seen.dy is not None
    slope = numeric_gradient(layer, case, seen.dy, of)
    size = max(float(np.abs(slope).max(initial=0.0)), float(np.abs(seen.right).max(initial=0.0))) or 1.0
    return float(np.abs(seen.got - slope).max(initial=0.0)) < 1e-4 * size


def _example(setup: Setup, training: bool, of: str) -> str | None:
    """The smallest input that shows the gradient's error: two or three values and a one-hot dy."""
    for channels in (1, 2, 4, setup.recipe.channels):
        groups = min(channels, setup.recipe.groups) if setup.recipe.kind == "group" else setup.recipe.groups
        text = _small_example(setup, training, of, channels, groups)
        if text:
            return text
    return None


def _small_example(setup: Setup, training: bool, of: str, channels: int, groups: int) -> str | None:
    from normlab.check.probe import small_shapes

    try:
        changes = {} if channels == setup.recipe.channels else {"channels": channels, "groups": groups}
        if setup.recipe.kind != "group":
            changes.pop("groups", None)
        recipe = replace(setup.recipe, channels=channels, groups=groups)
        for shape in small_shapes(setup, channels):
            grid_shape = recipe.to_grid(np.zeros(shape)).shape
            if training and np.prod([grid_shape[a] for a in recipe.axes]) < 2:
                continue
            layer = setup.subject.fresh(**changes)
            x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) ** 2
            case = load(setup, layer, x, training, recipe=recipe)
            dy = np.zeros(shape)
            dy.reshape(-1)[0] = 1.0
            layer.forward(x, training)
            got = layer.backward(dy)[of]
            right = {"x": input_gradient(case, dy), **parameter_gradients(case, dy)}[of]
            if relative_error(got, right) > max(1e-3, 100 * setup.tolerance):
                told = "" if case.weight is None else f", weight {compact(case.weight)}"
                return (
                    f"x = {compact(x)}, shape {shape}{told}, dy = {compact(dy)}\n"
                    f"expected {compact(right)}\ngot      {compact(got)}"
                )
    except (Unsupported, TargetFailure, ValueError):
        return None
    return None


@check("gradients.train")
def train(setup: Setup) -> Finding:
    return judge(setup, True)


@check("gradients.eval")
def evaluation(setup: Setup) -> Finding:
    return judge(setup, False)


@check("gradients.repeat")
def repeat(setup: Setup) -> Finding:
    """A second backward pass from the same forward pass returns the same, and changes neither x nor dy."""
    if not setup.subject.has_backward:
        return skip("the target has no backward pass")
    layer = setup.subject.fresh()
    case = load(setup, layer, sample(setup.shape), True)
    layer.forward(case.x, True)
    dy = sample(setup.shape, 1.0, seed=50)
    try:
        first = {k: v.copy() for k, v in layer.backward(dy).items()}
        second = layer.backward(dy)
    except Unsupported as e:
        return skip(str(e))
    off = {k: relative_error(second[k], first[k]) for k in first}
    if getattr(layer, "overwrote_gradient", False):
        return bug(
            "the backward pass overwrites the gradient that it is handed",
            "changes-gradient",
            "dx = dy * gamma makes a new array; dy *= gamma does not",
        )
    learned = [k for k in first if k != "x" and np.any(first[k])]
    if learned and all(relative_error(second[k], 2 * first[k]) <= setup.tolerance for k in learned):
        return bug(
            "a second backward pass adds to the gradients of the parameters: they are not set anew",
            "gradients-accumulate",
            "self.dgamma = ..., not self.dgamma += ...; where accumulation is meant, something must clear them",
        )
    if max(off.values()) > setup.tolerance:
        return bug(
            "a second backward pass from the same forward pass answers something else: backward changes the cache "
            "or what it was given",
            "backward-changes-cache",
            "backward reads dy and the cache and writes new arrays",
            ", ".join(f"d{k} differs by {v:.3g}" for k, v in off.items()),
        )
    return passed("a second backward pass answers the same")


@check("gradients.running-detached")
def running_detached(setup: Setup) -> Finding:
    """No gradient may flow through the running statistics."""
    tensors = getattr(setup.subject.fresh(), "running_tensors", None)
    if not setup.recipe.tracks or tensors is None:
        return skip("no running statistics that could carry a gradient")
    from normlab.check.subjects.torch_module import TorchSubject

    layer = setup.subject.fresh()
    assert isinstance(layer, TorchSubject)
    layer.forward(sample(setup.shape), True)
    for name, t in layer.running_tensors().items():
        if t.requires_grad or t.grad_fn is not None:
            held = "is a parameter: the optimizer moves it" if t.is_leaf else "keeps the graph of every step so far"
            return bug(
                f"{name} requires a gradient and {held}",
                "running-requires-grad" if t.is_leaf else "running-keeps-graph",
                "with torch.no_grad(): running_mean.lerp_(mean, momentum); registered by register_buffer",
            )
    return passed("no gradient flows through the running statistics")


def directional(layer: Subject, case: Case, dy: Array, direction: NDArray[Any]) -> float:
    """Derivative of sum(y * dy) along a direction of the input, by central differences."""
    h = 1e-6

    def at(t: float) -> float:
        if case.running is not None:
            layer.set_running(*case.running)
        y = layer.forward(case.x + t * direction, case.training)
        return float((np.asarray(y, dtype=np.float64) * dy).sum())

    return (at(h) - at(-h)) / (2 * h)


@check("gradients.degenerate")
def degenerate(setup: Setup) -> Finding:
    """Of a pool of one value the normalized value is zero, and so is the weight's gradient: exactly, in float32."""
    recipe = setup.recipe
    if not setup.subject.has_backward or "float32" not in setup.subject.dtypes or not recipe.centers:
        return skip("no backward pass in float32, or no mean that is taken off")
    sizes = {"layer": {"channels": 1}, "group": {"channels": 6, "groups": 6}, "instance": {}}.get(recipe.kind)
    if sizes is None or (recipe.kind == "layer" and recipe.over != "trailing"):
        return skip("batch norm has no pool of one value")
    shape = (9, 4, 1) if recipe.kind == "layer" else (9, 6, *(1,) * (len(setup.shape) - 2))
    rng = np.random.default_rng(31)
    x, dy = (rng.normal(m, s, shape).astype(np.float32) for m, s in ((1e4, 1e3), (0.0, 1.0)))
    try:
        layer = fresh(setup, shape, dtype="float32", **sizes)
        layer.set_parameters({r: np.full(v.size, float(r != "bias")) for r, v in layer.parameters.items()})
        layer.forward(x, True)
        got = layer.backward(dy)
    except (TargetFailure, Unsupported) as e:
        return skip(f"an input of shape {shape} is not taken: it {e}")
    worst = {k: float(np.abs(g).max(initial=0.0)) for k, g in got.items() if k in ("x", "weight")}
    off = {k: v for k, v in worst.items() if not v <= 1e-3}
    if off:
        told = ", ".join(f"{'dx' if k == 'x' else 'dweight'} is up to {v:.3g} where 0 is right" for k, v in off.items())
        return note(
            f"of pools of one value, shape {shape}, float32, x about 1e4, dy about 1: {told}", "degenerate-gradient"
        )
    return passed("gradients of pools of one value are zero", error=max(worst.values(), default=0.0))


@check("gradients.numerical")
def numerical(setup: Setup) -> Finding:
    """dx against central differences of the layer's own output, along random directions."""
    if not setup.subject.has_backward:
        return skip("the target has no backward pass")
    if not setup.precise:
        return skip("the layer computes in float32: differences of its outputs are too coarse")
    rng = setup.rng()
    for training in (True,) if _trains_only(setup) else (True, False):
        layer = setup.subject.fresh()
        case = load(setup, layer, sample(setup.shape), training)
        dy = sample(setup.shape, 1.0, seed=50)
        layer.forward(case.x, training)
        try:
            dx = layer.backward(dy)["x"]
        except (Unsupported, TargetFailure):
            if training:
                raise
            continue  # no backward pass in evaluation
        for _ in range(3):
            v = rng.normal(size=setup.shape)
            slope, claimed = directional(layer, case, dy, v), float((dx * v).sum())
            if abs(slope - claimed) > 1e-5 * (1 + abs(slope) + float(np.abs(dx * v).sum())):
                return bug(
                    f"dx disagrees with the layer's own output: along one direction the output's slope is {slope:.6g}, "
                    f"dx says {claimed:.6g}",
                    "dx-disagrees",
                    FORMULAS["x"],
                )
    return passed("dx agrees with differences of the layer's own output")
