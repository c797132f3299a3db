"""State: what a layer keeps, when it changes, and whether it survives copying, saving, threads and compilers."""

from __future__ import annotations

import numpy as np

from normlab.check.diagnose import error, relative_error
from normlab.check.dialect import Setup
from normlab.check.probe import bug, check, load, passed, sample, skip
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported


def snapshot(layer: Subject) -> dict[str, np.ndarray]:
    """Copies of parameters and running statistics."""
    kept = {role: np.array(v, dtype=np.float64).reshape(-1) for role, v in layer.parameters.items()}
    if layer.running is not None:
        kept["running_mean"], kept["running_var"] = (r.copy() for r in layer.running)
    return kept


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    return [k for k in before if k not in after or not np.array_equal(before[k], after[k], equal_nan=True)]


@check("state.eval-leaves-state")
def eval_leaves_state(setup: Setup) -> Finding:
    layer = setup.subject.fresh()
    load(setup, layer, sample(setup.shape), False)
    before = snapshot(layer)
    layer.forward(sample(setup.shape), False)
    moved = changed(before, snapshot(layer))
    if moved:
        return bug(
            f"evaluation changes {', '.join(moved)}",
            "updates-in-eval",
            "running statistics are updated in training alone",
            f"one forward pass in evaluation, x of shape {setup.shape}",
        )
    return passed("evaluation changes nothing")


@check("state.parameters-kept")
def parameters_kept(setup: Setup) -> Finding:
    """A forward pass of the layer changes no parameter."""
    layer = setup.subject.fresh()
    load(setup, layer, sample(setup.shape), True)
    before = snapshot(layer)
    x = sample(setup.shape)
    layer.forward(x, True)
    moved = [k for k in changed(before, snapshot(layer)) if not k.startswith("running")]
    if moved:
        return bug(
            f"a forward pass changes {', '.join(moved)}", "changes-parameters", "a forward pass reads parameters"
        )
    return passed("a forward pass leaves parameters alone")


@check("state.input-kept")
def input_kept(setup: Setup) -> Finding:
    """A forward pass leaves its input as it was: other layers, and the numerical gradient, read it again."""
    layer, x = setup.subject.fresh(), sample(setup.shape)
    load(setup, layer, x, True)
    layer.forward(x, True)
    given = layer.given
    if given is not None and not np.array_equal(given, x):
        return bug(
            "the forward pass overwrites its input",
            "changes-input",
            "x = x - mean makes a new array; x -= mean does not",
            f"x of shape {setup.shape}",
        )
    return passed("a forward pass leaves its input alone")


@check("state.switch")
def switch(setup: Setup) -> Finding:
    """train, eval, train: the mode is obeyed at every call."""
    layer = setup.subject.fresh()
    x = sample(setup.shape)
    load(setup, layer, x, True)
    outputs = []
    for training in (True, False, True, False):
        load(setup, layer, x, training)
        outputs.append(layer.forward(x, training))
    if error(outputs[2], outputs[0]) > 0 or error(outputs[3], outputs[1]) > 0:
        return bug(
            "switching between training and evaluation changes the outputs of either mode",
            "mode-remembered",
            "the mode decides at every call",
        )
    if setup.recipe.tracks and error(outputs[0], outputs[1]) < 1e-6:
        return bug(
            "training and evaluation give the same output: the mode is ignored",
            "mode-ignored",
            "training: the batch's statistics; evaluation: the running ones",
        )
    return passed("training and evaluation switch back and forth")


@check("state.determinism")
def determinism(setup: Setup) -> Finding:
    x = sample(setup.shape)
    for training in (True, False):
        layer = setup.subject.fresh()
        load(setup, layer, x, training)
        first = layer.forward(x, training)
        load(setup, layer, x, training)
        for _ in range(3):
            load(setup, layer, x, training)
            if not np.array_equal(first, layer.forward(x, training), equal_nan=True):
                return bug(
                    "the same input gives different outputs",
                    "not-deterministic",
                    "a norm has no randomness, and its output in training does not depend on earlier batches",
                )
    return passed("the same input gives the same output")


@check("state.history")
def history(setup: Setup) -> Finding:
    """In training the output depends on this batch alone, whatever batches came before."""
    x, other = sample(setup.shape), sample(setup.shape, 5.0, seed=9)
    layer = setup.subject.fresh()
    load(setup, layer, x, True)
    fresh_output = layer.forward(x, True)
    for _ in range(3):
        layer.forward(other, True)
    if error(layer.forward(x, True), fresh_output) > setup.tolerance:
        return bug(
            "the output in training depends on the batches before",
            "depends-on-history",
            "training normalizes with the batch's own statistics",
        )
    return passed("in training the output depends on this batch alone")


@check("state.other-shape")
def other_shape(setup: Setup) -> Finding:
    """Another batch size right after the first: nothing may be kept from the shape before."""
    layer = setup.subject.fresh()
    load(setup, layer, sample(setup.shape), True)
    layer.forward(sample(setup.shape), True)
    shape = (setup.shape[0] + 2, *setup.shape[1:])
    reference = setup.subject.fresh()
    load(setup, reference, sample(shape), True)
    expected = reference.forward(sample(shape), True)
    try:
        got = layer.forward(sample(shape), True)
    except TargetFailure as e:
        return bug(
            f"a second batch of another size fails: the layer {e}",
            "remembers-shape",
            "sizes belong to the call, not to the layer",
            f"x of shape {setup.shape}, then {shape}",
        )
    off = error(got, expected)
    if layer.running is not None and setup.recipe.tracks:
        load(setup, layer, sample(shape), True)  # both from the same running statistics
        load(setup, reference, sample(shape), True)
        layer.forward(sample(shape), True)
        reference.forward(sample(shape), True)
        assert reference.running is not None
        off = max(off, *(error(a, b) for a, b in zip(layer.running, reference.running, strict=True)))
    if off > setup.tolerance:
        return bug(
            "a second batch of another size is wrong: something is kept from the first",
            "remembers-shape",
            "sizes belong to the call, not to the layer",
            f"x of shape {setup.shape}, then {shape}",
        )
    return passed("batches of other sizes follow each other")


@check("state.instances")
def instances(setup: Setup) -> Finding:
    """Two layers share nothing."""
    try:
        first, second = setup.subject.fresh(dtype="float32"), setup.subject.fresh(dtype="float32")
    except Unsupported:
        first, second = setup.subject.fresh(), setup.subject.fresh()
    before = snapshot(second)
    load(setup, first, sample(setup.shape), True)
    first.forward(sample(setup.shape), True)
    shared = changed(before, snapshot(second))
    if shared:
        return bug(
            f"two layers share {', '.join(shared)}: training one changes the other",
            "shared-state",
            "make state in __init__, not in the class or a default argument",
        )
    return passed("two layers share nothing")


@check("state.twice-in-one-graph")
def twice_in_one_graph(setup: Setup) -> Finding:
    """Two forward passes, then the backward pass of the first: what it needs must not be overwritten."""
    if not setup.subject.has_backward:
        return skip("the target has no backward pass")
    layer = setup.subject.fresh()
    x, other, dy = sample(setup.shape), sample(setup.shape, 4.0, seed=3), sample(setup.shape, 1.0, seed=50)
    try:
        load(setup, layer, x, True)
        layer.forward(x, True)
        alone = {k: v.copy() for k, v in layer.backward(dy).items()}
        load(setup, layer, x, True)
        layer.forward(x, True)
        tape = layer.tape
        layer.forward(other, True)
        layer.tape = tape
        got = layer.backward(dy)
    except Unsupported as e:
        return skip(str(e))
    off = {k: relative_error(got[k], alone[k]) for k in alone}
    if max(off.values()) > setup.tolerance:
        return bug(
            "used twice before the backward pass, the first use gets the second one's gradient: what backward needs "
            "is kept on the layer",
            "kept-on-layer",
            "ctx.save_for_backward or a cache per call",
            ", ".join(f"d{k} differs by {v:.3g}" for k, v in off.items() if v > setup.tolerance),
        )
    return passed("two uses in one graph keep apart")
