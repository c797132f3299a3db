"""Values: outputs and running statistics against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normlab.check.diagnose import Observation, error, explain_output, explain_running
from normlab.check.dialect import Setup
from normlab.check.forgotten import pools_as_measured
from normlab.check.oracle import RIGHT as NO_SLIP
from normlab.check.oracle import Array, Case, forward, updated_running
from normlab.check.pools import PER_SAMPLE
from normlab.check.probe import bug, check, fresh, load, note, passed, sample, shapes, skip, small, smallest
from normlab.check.report import Finding
from normlab.check.slips import ForwardSlip, Slip, StateSlip
from normlab.check.subjects import TargetFailure, Unsupported


def judge(setup: Setup, seen: list[Observation], what: str, also: Callable[[], list[Observation]] = list) -> Finding:
    """Compare outputs; a failure is diagnosed on all of them together, and on `also` where one slip explains both."""
    errors = [error(o.got, o.right) for o in seen]
    worst = max(errors)
    tolerance = setup.tolerance_in(all(o.case.training for o in seen))
    if worst <= tolerance:
        return passed(f"{what} is right", error=worst)
    slip = _explain(setup, seen, tolerance, also)
    if slip is not None and all(o.case.training for o in seen):
        setup.written = slip.stages
    first = seen[int(np.argmax(errors))].case
    example = smallest(setup, first.training)
    if slip is None:
        kind = setup.recipe.kind
        return bug(
            f"{what} is wrong by {worst:.3g} (relative); no known slip explains it",
            "unexplained",
            setup.recipe.formula or RIGHT[kind],
            example,
        )
    return bug(f"{what} is wrong: {counted(slip)}", slip.cause, slip.formula, example, error=worst)


# what layers that do not say their eps have
USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-3, 1e-7, 1e-12)


def _explain(
    setup: Setup, seen: list[Observation], tolerance: float, also: Callable[[], list[Observation]]
) -> ForwardSlip | None:
    """The slip, or the two, that explain the outputs; with another eps, where the layer does not say which it has.

    Where none explains the inputs of every rank, those of the main shape decide: what else a layer takes without an
    error, it may not be meant for.
    """
    main = [o for o in seen if o.case.x.shape == setup.shape]
    measured = pools_as_measured(setup, list({o.case.x.shape: None for o in seen}))
    free = "eps" not in setup.subject.declared and "eps" not in setup.subject.settable
    rivals = [seen, *(with_eps(seen, e) for e in USUAL_EPS if free and e != setup.recipe.eps)]
    for pairs in (False, True):
        for some in (*rivals, main) if len(main) < len(seen) else rivals:
            slip = explain_output(some, tolerance, measured, pairs)
            if slip is None or (free and "eps-ignored" in slip.cause):
                continue
            setup.recipe = replace(setup.recipe, eps=some[0].case.recipe.eps)
            more = also()
            if more:
                return explain_output([*some, *more], max(tolerance, setup.tolerance_in(False)), measured) or slip
            return slip
    return None


def with_eps(seen: list[Observation], eps: float) -> list[Observation]:
    """The same observations of a layer that has another eps."""
    cases = [replace(o.case, recipe=replace(o.case.recipe, eps=eps)) for o in seen]
    return [replace(o, case=c, right=forward(c)) for o, c in zip(seen, cases, strict=True)]


def counted(slip: Slip) -> str:
    """The slip in words; two at once are counted."""
    return ("two slips: " if " + " in slip.cause else "") + slip.sentence


RIGHT = {
    "batch": "y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var per channel",
    "layer": "y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var per sample",
    "instance": "y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var per sample and channel",
    "group": "y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var per sample and group of channels",
    "batch-instance": "y = weight * (gate * xhat_batch + (1 - gate) * xhat_instance) + bias",
    "rms": "y = weight * x / sqrt(mean(x^2) + eps)",
}


def observe(setup: Setup, training: bool, scale: float = 2.0, **built: float) -> list[Observation]:
    """Outputs for every rank, and for an input of small variance, where eps shows."""
    seen = []
    recipe = replace(setup.recipe, **built)  # type: ignore[arg-type]
    inputs = [(s, scale) for s in shapes(setup)] + [(setup.shape, small(recipe))]
    for seed, (shape, size) in enumerate(inputs):
        layer = fresh(setup, shape, **built)
        x = sample(shape, size, seed=seed)
        case = load(setup, layer, x, training, seed, recipe)
        if not training and case.running is not None:  # small running variances show eps too
            mean, var = case.running
            case = replace(case, running=(mean * size, var * size**2))
            layer.set_running(*case.running)  # type: ignore[misc]
        seen.append(Observation(case, layer.forward(x, training), forward(case)))
    return seen


@check("values.initial")
def initial(setup: Setup) -> Finding:
    layer = setup.subject.fresh()
    wanted = {"weight": 1.0, "bias": 0.0}
    for role, value in layer.parameters.items():
        if role in wanted and np.any(value != wanted[role]):
            zero_centred = role == "weight" and not np.any(value)
            return bug(
                f"a new layer's {role} is {value.reshape(-1)[0]:g}, not {wanted[role]:g}"
                + (
                    ": it starts as the zero function, unless 1 is added to it in the forward pass"
                    if zero_centred
                    else ""
                ),
                f"initial-{role}",
                "weight = 1, bias = 0: a new layer normalizes and nothing else",
            )
    if layer.running is not None and setup.recipe.tracks:
        mean, var = layer.running
        if np.any(mean != 0) or np.any(var != 1):
            which, value = ("running_mean", mean[0]) if np.any(mean != 0) else ("running_var", var[0])
            if setup.subject.form == "NumPy layer object" and not np.any(mean) and not np.any(var):
                return note(
                    "a new layer's running_var is 0, as in the assignments: before the first batch, evaluation divides "
                    "by sqrt(eps)",
                    "initial-running-var",
                )
            return bug(
                f"a new layer's {which} is {value:g}",
                f"initial-{which.replace('_', '-')}",
                "running_mean = 0, running_var = 1: a new layer in evaluation is the identity",
            )
    return passed("a new layer starts from weight 1, bias 0, running mean 0, running variance 1")


def _find_exchange(setup: Setup) -> Finding | None:
    """Eps and momentum in each other's place, both numbers between 0 and 1; None where they are not."""
    told = setup.subject.declared
    given = {"eps": 0.25, "momentum": 0.4} if {"eps", "momentum"} <= setup.subject.settable else {}
    eps, momentum = (given or told).get("eps"), (given or told).get("momentum")
    if eps is None or momentum is None or abs(eps - momentum) < 1e-9 or setup.recipe.own.deviation is not None:
        return None
    x = sample(setup.shape, 0.5)
    layer = fresh(setup, setup.shape, **given)
    case = load(setup, layer, x, True)
    if (
        error(layer.forward(x, True), forward(replace(case, recipe=replace(setup.recipe, eps=momentum))))
        > 10 * setup.tolerance
    ):
        return None
    return bug(
        f"eps and momentum are exchanged: with eps {eps:g} and momentum {momentum:g} the output is that of eps "
        f"{momentum:g}",
        "eps-and-momentum-swapped",
        "F.batch_norm(x, mean, var, weight, bias, training, momentum, eps): momentum comes before eps",
    )


@check("values.train")
def train(setup: Setup) -> Finding:
    exchanged = _find_exchange(setup) if setup.recipe.tracks else None
    if exchanged is not None:
        return exchanged
    mixes = setup.recipe.kind == "batch-instance"  # some slips of its two halves differ in evaluation alone
    in_eval = (lambda: observe(setup, training=False)) if mixes else list
    return judge(setup, observe(setup, training=True), "the output in training", in_eval)


@check("values.eval")
def evaluation(setup: Setup) -> Finding:
    if setup.recipe.tracks and _updates(setup):
        return bug(
            "evaluation updates the running statistics before it uses them",
            "updates-in-eval",
            "running statistics are updated in training alone",
            f"one forward pass in evaluation, x of shape {setup.shape}",
        )
    return judge(setup, observe(setup, training=False), "the output in evaluation")


def _updates(setup: Setup) -> bool:
    """Whether the output in evaluation is that of running statistics which this very call has changed."""
    layer = fresh(setup, setup.shape)
    case = load(setup, layer, sample(setup.shape), False)
    before = layer.running
    y = layer.forward(case.x, False)
    after = layer.running
    if before is None or after is None or all(map(np.array_equal, before, after)):
        return False
    tolerance = setup.tolerance_in(False)
    return error(y, forward(case)) > tolerance >= error(y, forward(replace(case, running=after)))


@check("values.running")
def running(setup: Setup) -> Finding:
    if not setup.recipe.tracks:
        return skip("the layer keeps no running statistics")
    return _judge_running(setup, setup.recipe.momentum, {})


def _judge_running(setup: Setup, momentum: float, built: dict[str, float]) -> Finding:
    recipe = replace(setup.recipe, momentum=momentum)
    cases: list[Case] = []
    after: list[tuple[Array, Array]] = []
    for seed, shape in enumerate(shapes(setup)):
        layer = fresh(setup, shape, **built)
        layer.forward(sample(shape), True)  # the first batch has its own check
        case = load(setup, layer, sample(shape, seed=seed), True, seed, recipe)
        for step in range(3):  # several steps: a slip may show from the second on
            x = sample(shape, seed=10 * seed + step)
            case = replace(case, x=x, recipe=recipe.at_step(step))
            layer.forward(x, True)
            found = layer.running
            assert found is not None
            cases.append(case)
            after.append((found[0].copy(), found[1].copy()))
            case = replace(case, running=after[-1])
    errors = [max(error(m, r[0]), error(v, r[1])) for (m, v), r in zip(after, map(updated_running, cases), strict=True)]
    tolerance = max(setup.tolerance_in(False), 1e-5 if _stores_float32(after) else 0.0)
    if max(errors) <= tolerance:
        return passed("running statistics follow the batches", error=max(errors))
    written = [_with_slips(setup, c) for c in cases]
    if _matches_forward(setup, cases, after, tolerance):
        return skip("the running statistics are those of the forward pass as it is written, which is wrong already")
    slip = _explained_as_written(written, after, tolerance) or explain_running(cases, after, tolerance)
    if setup.free_variance and (slip is None or " + " in slip.cause):
        unbiased = not recipe.unbiased_running_var
        others = [replace(c, recipe=replace(c.recipe, unbiased_running_var=unbiased)) for c in cases]
        other = explain_running(others, after, tolerance)
        if other is not None and (slip is None or " + " not in other.cause):
            slip = other
    example = _running_example(cases[0], after[0])
    if slip is None and setup.written != NO_SLIP:
        return bug(
            "the running statistics are wrong, too, as the forward pass is: mend that first, and check again",
            None,
            "running = (1 - m) * running + m * batch statistic",
            example,
        )
    if slip is None:
        return bug(
            f"the running statistics are wrong by {max(errors):.3g} (relative); no known slip explains it",
            "unexplained-running",
            "running = (1 - m) * running + m * batch statistic",
            example,
        )
    return bug(f"running statistics: {counted(slip)}", slip.cause, slip.formula, example, error=max(errors))


def _with_slips(setup: Setup, case: Case, unbiased: bool | None = None) -> Case:
    """The case of the forward pass with its slips; a variance that is unbiased already is not corrected again."""
    if unbiased is None:
        unbiased = case.recipe.unbiased_running_var and setup.written.spread is None
    return replace(case, stages=setup.written, recipe=replace(case.recipe, unbiased_running_var=unbiased))


def _matches_forward(setup: Setup, cases: list[Case], after: list[tuple[Array, Array]], tolerance: float) -> bool:
    """Whether the statistics are those of the forward pass as it is written, with its slips."""
    if setup.written == NO_SLIP:
        return False

    def found(case: Case, got: tuple[Array, Array]) -> bool:
        return all(error(g, r) <= tolerance for g, r in zip(got, updated_running(case), strict=True))

    for unbiased in _corrections(setup, cases[0]):
        try:  # inputs of another rank may have a forward pass that is right
            if all(found(_with_slips(setup, c, unbiased), a) or found(c, a) for c, a in zip(cases, after, strict=True)):
                return True
        except (ValueError, LookupError):  # not one value for each channel
            return False
    return False


def _corrections(setup: Setup, case: Case) -> tuple[bool | None, ...]:
    """Which corrections of the stored variance are right for the forward pass as it is written; None is its own.

    Where it pools other values, or has another variance, the dialect could not be measured: either will do, but for a
    variance that is unbiased already.
    """
    if setup.written.axes is not None or setup.written.elsewhere:
        return True, False
    if setup.written.spread is None:
        return (None,)
    p = _with_slips(setup, case).passes()[0]
    return (None,) if np.allclose(p.var * (p.count - 1), p.biased * p.count) else (True, False)


def _explained_as_written(cases: list[Case], after: list[tuple[Array, Array]], tolerance: float) -> StateSlip | None:
    if cases[0].stages == NO_SLIP:
        return None
    try:
        slip = explain_running(cases, after, tolerance)
    except (ValueError, LookupError):
        return None
    return None if slip is None or " + " in slip.cause else slip


def _stores_float32(after: list[tuple[Array, Array]]) -> bool:
    return all(np.array_equal(a.astype(np.float32), a) for pair in after for a in pair)


def _running_example(case: Case, got: tuple[Array, Array]) -> str:
    assert case.running is not None
    mean, var = updated_running(case)
    return (
        f"channel 0 before: mean {case.running[0][0]:.5g}, var {case.running[1][0]:.5g}; a batch of {case.x.shape}\n"
        f"expected mean {mean[0]:.6g}, var {var[0]:.6g}\ngot      mean {got[0][0]:.6g}, var {got[1][0]:.6g}"
    )


@check("values.momentum")
def momentum(setup: Setup) -> Finding:
    if not setup.recipe.tracks:
        return skip("the layer keeps no running statistics")
    if setup.recipe.cumulative:
        return skip("momentum=None: there is no weight to set")
    declared = setup.subject.declared.get("momentum")
    weighs_new = declared is None or abs(declared - setup.recipe.momentum) < 1e-9
    other = 0.3 if weighs_new else 0.7
    try:
        return _judge_running(setup, 0.3, {"momentum": other})
    except Unsupported as e:
        return skip(str(e))


@check("values.eps")
def eps(setup: Setup) -> Finding:
    try:
        found = judge(setup, observe(setup, training=True, eps=0.5), "the output with eps = 0.5")
        if found.status == "pass" and setup.recipe.tracks:
            return judge(setup, observe(setup, training=False, eps=0.5), "the output in evaluation with eps = 0.5")
    except Unsupported as e:
        return skip(str(e))
    return found


@check("values.affine")
def affine(setup: Setup) -> Finding:
    try:
        layer = setup.subject.fresh(affine=False)
    except Unsupported as e:
        return skip(str(e))
    if layer.parameters.keys() & {"weight", "bias"}:
        return bug("affine=False is ignored: the layer still has weight and bias", "affine-ignored", "no parameters")
    x = sample(setup.shape)
    case = load(setup, layer, x, True)
    try:
        y = layer.forward(x, True)
    except TargetFailure as e:
        if layer.inherits_options:
            return skip(f"without affine, which it takes from torch's class, it {e}")
        raise
    return judge(setup, [Observation(case, y, forward(case))], "the output without affine")


@check("values.shape")
def several_axes(setup: Setup) -> Finding:
    """A layer that takes a shape to normalize over pools over all of its axes."""
    over_tail = setup.recipe.kind in PER_SAMPLE and setup.recipe.over == "trailing"
    if not over_tail or "tail" not in setup.subject.settable:
        return skip("the layer takes no shape to normalize over")
    tail = (4, 3)
    try:
        layer = setup.subject.fresh(tail=tail)
    except (TargetFailure, Unsupported) as e:
        return skip(f"with the shape {tail} it {e}")
    if any(v.size != 12 for v in layer.parameters.values()):
        return skip("its parameters do not have the shape that is normalized over")
    recipe = replace(setup.recipe, over="trailing", trailing=2, channels=12)
    x = sample((5, *tail))
    case = load(setup, layer, x, True, recipe=recipe)
    try:
        y = layer.forward(x, True)
    except TargetFailure as e:
        return skip(f"built for the shape {tail} it {e}")
    return judge(setup, [Observation(case, y, forward(case))], f"the output over {tail}")


@check("values.first-batch")
def first_batch(setup: Setup) -> Finding:
    """The first batch of a new layer is like any other: it must not be taken whole into the running statistics."""
    if not setup.recipe.tracks:
        return skip("the layer keeps no running statistics")
    layer = setup.subject.fresh()
    if layer.running is None:
        return skip("the layer makes its running statistics with the first batch")
    x = sample(setup.shape)
    case = Case(setup.recipe, x, running=(layer.running[0].copy(), layer.running[1].copy()))
    layer.forward(x, True)
    got, right = layer.running, updated_running(case)
    off = max(error(got[0], right[0]), error(got[1], right[1]))
    tolerance = max(setup.tolerance_in(False), 1e-5 if _stores_float32([got]) else 0.0)
    if off <= tolerance:
        return passed("the first batch enters the running statistics like any other", error=off)
    if _matches_forward(setup, [case], [got], tolerance):
        return skip("the running statistics are those of the forward pass as it is written, which is wrong already")
    slip = explain_running([case], [got], setup.tolerance)
    sentence = slip.sentence if slip else "not what momentum gives"
    if slip is not None and slip.cause == "momentum-missing":
        sentence = "the first batch is taken whole; it enters with the weight m like any other"
    return bug(
        f"running statistics after the first batch: {sentence}",
        "first-batch-whole" if slip and slip.cause == "momentum-missing" else (slip.cause if slip else "first-batch"),
        "running = (1 - m) * running + m * batch statistic, from the first batch on",
        _running_example(case, got),
    )
