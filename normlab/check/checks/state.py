"""State: what a layer keeps, when it changes, and whether it survives copying, saving, threads and compilers."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from threading import Barrier
from types import FrameType
from typing import Any

import numpy as np

from normlab.check.diagnose import error, relative_error
from normlab.check.dialect import Setup
from normlab.check.probe import bug, check, load, note, passed, sample, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported
from normlab.check.subjects.base import guarded


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
    """A training step of the layer alone changes no parameter, neither its input nor the gradient it is handed."""
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
    given = _given_input(layer, x)
    if given is not None and not np.array_equal(given, x):
        return bug(
            "the forward pass overwrites its input",
            "changes-input",
            "x = x - mean makes a new array; x -= mean does not",
            f"x of shape {setup.shape}",
        )
    return passed("the forward pass leaves its input and parameters alone")


def _given_input(layer: Subject, x: np.ndarray) -> np.ndarray | None:
    from normlab.check.subjects.functions import FunctionSubject
    from normlab.check.subjects.torch_module import TorchSubject

    if isinstance(layer, FunctionSubject):
        first = layer.tape["x"]
        return first.detach().numpy() if hasattr(first, "detach") else first
    if isinstance(layer, TorchSubject):
        import torch

        with torch.no_grad():  # a leaf that requires a gradient would raise and hide the overwriting
            given = torch.from_numpy(np.array(x))
            layer.run(given, True)
        return given.numpy()
    return None


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


@check("state.no-grad")
def no_grad(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    import torch

    x = sample(setup.shape)
    load(setup, layer, x, True)
    expected = layer.forward(x, True)
    kept = layer.running
    load(setup, layer, x, True)
    with torch.no_grad():
        got = layer.run(torch.from_numpy(x), True).numpy()
    if error(got, expected) > setup.tolerance:
        return bug("under no_grad the output in training differs", "no-grad-differs", "no_grad changes no value")
    if kept is not None and setup.recipe.tracks:
        now = layer.running
        assert now is not None
        if error(now[0], kept[0]) > 1e-12 or error(now[1], kept[1]) > 1e-12:
            return bug(
                "under no_grad the running statistics are not updated in training",
                "no-grad-skips-update",
                "training updates running statistics, with or without gradients",
            )
    return passed("no_grad changes no value")


@check("state.freeze")
def freeze(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    import torch

    x = sample(setup.shape)
    dy = torch.from_numpy(sample(setup.shape, 1.0, seed=50))
    results = []
    for frozen in (False, True):
        load(setup, layer, x, False)
        for p in layer.module.parameters():
            p.requires_grad_(not frozen)
        given = torch.from_numpy(x).requires_grad_(True)
        y = layer.run(given, False)
        dx = guarded(torch.autograd.grad, y, given, dy, allow_unused=True)[0] if y.requires_grad else None
        results.append(np.zeros(x.shape) if dx is None else dx.numpy())
    if relative_error(results[1], results[0]) > setup.tolerance:
        return bug("freezing the parameters changes dx", "freeze-changes-dx", "dx does not depend on requires_grad")
    if setup.recipe.tracks and setup.recipe.kind != "instance":
        return passed("frozen parameters leave dx alone (running statistics still move in training: call eval())")
    return passed("frozen parameters leave dx alone")


@check("state.parameters-registered")
def parameters_registered(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    registered = {id(p) for p in layer.module.parameters()}
    for role, t in layer._tensors().items():
        if id(t) not in registered:
            return bug(
                f"the {role} is no registered parameter: the optimizer does not see it",
                "parameter-not-registered",
                "self.weight = nn.Parameter(torch.ones(channels))",
            )
        if not t.requires_grad:
            return bug(f"the {role} has requires_grad=False", "parameter-not-registered", "nn.Parameter(...)")
    return passed("parameters are registered")


@check("state.state-dict")
def state_dict(setup: Setup) -> Finding:
    """Save, load into a new layer, compare in evaluation."""
    layer = torch_layer(setup)
    x = sample(setup.shape)
    load(setup, layer, x, False)
    expected = layer.forward(x, False)
    saved = {k: v.clone() for k, v in layer.module.state_dict().items()}
    missing = [
        name
        for name, t in layer.running_tensors().items()
        if not any(v.shape == t.shape and bool((v == t).all()) for v in saved.values())
    ]
    other = setup.subject.fresh()
    assert hasattr(other, "module")
    guarded(other.module.load_state_dict, saved)
    if missing or error(other.forward(x, False), expected) > setup.tolerance:
        lost = ", ".join(missing) or "something"
        return bug(
            f"saving and loading state_dict loses {lost}: evaluation differs afterwards",
            "state-not-saved",
            'self.register_buffer("running_mean", torch.zeros(channels))',
            "state_dict keys: " + (", ".join(saved) or "none"),
        )
    return passed("state_dict carries the whole state")


@check("state.deepcopy")
def deepcopy(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    x = sample(setup.shape)
    load(setup, layer, x, True)
    layer.forward(x, True)
    load(setup, layer, x, False)
    expected = layer.forward(x, False)
    layer.tape = None
    try:
        twin = copy.deepcopy(layer.module)
    except BaseException as e:
        return bug(
            f"deepcopy fails after a training step: {type(e).__name__}: {e}",
            "deepcopy-fails",
            "keep no tensor of the graph on the layer",
        )
    original, layer.module = layer.module, twin
    same = error(layer.forward(x, False), expected) <= setup.tolerance
    before = {k: v.clone() for k, v in original.state_dict().items()}
    layer.forward(sample(setup.shape, seed=4), True)
    layer.tape = None
    kept = all(bool((before[k] == v).all()) for k, v in original.state_dict().items())
    layer.module = original
    if not same:
        return bug("a deep copy answers differently", "deepcopy-differs", "all state in parameters and buffers")
    if not kept:
        return bug("training a deep copy changes the original", "deepcopy-shares", "no state outside the layer")
    return passed("a deep copy is equal and independent")


@check("state.pickle")
def pickling(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    x = sample(setup.shape)
    load(setup, layer, x, False)
    expected = layer.forward(x, False)
    layer.tape = None
    try:
        twin = pickle.loads(pickle.dumps(layer.module))
    except BaseException as e:
        if _not_importable(layer.module):
            return skip("the class cannot be imported by name")
        return bug(
            f"pickling fails: {type(e).__name__}: {e}",
            "pickle-fails",
            "keep no lambda, lock or open file on the layer; a method or a module-level function instead",
        )
    layer.module = twin
    if error(layer.forward(x, False), expected) > setup.tolerance:
        return bug("an unpickled layer answers differently", "pickle-differs", "all state in parameters and buffers")
    return passed("pickling carries the whole state")


def _not_importable(module: Any) -> bool:
    cls = type(module)
    holder = sys.modules.get(cls.__module__)
    return getattr(holder, cls.__qualname__, None) is not cls


@check("state.moves-with-dtype")
def moves_with_dtype(setup: Setup) -> Finding:
    """.double() and .to(device) must take every tensor along."""
    layer = torch_layer(setup, dtype="float64")
    import torch

    stray = [
        name
        for name, t in vars(layer.module).items()
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype is not torch.float64
    ]
    if stray:
        return bug(
            f"{', '.join(stray)} stays behind when the layer moves to another dtype or device",
            "not-a-buffer",
            "register_buffer for state, nn.Parameter for what is learned",
        )
    return passed("every tensor moves with the layer")


@check("state.checkpointing")
def checkpointing(setup: Setup) -> Finding:
    """Activation checkpointing: the same gradient; statistics move twice, for every layer."""
    layer = torch_layer(setup)
    import torch
    from torch.utils.checkpoint import checkpoint

    x, dy = sample(setup.shape), torch.from_numpy(sample(setup.shape, 1.0, seed=50))
    results = []
    for checkpointed in (False, True):
        load(setup, layer, x, True)
        layer.module.train()
        given = torch.from_numpy(x).requires_grad_(True)
        y = guarded(checkpoint, layer.module, given, use_reentrant=False) if checkpointed else layer.run(given, True)
        dx = guarded(torch.autograd.grad, y, given, dy, allow_unused=True)[0] if y.requires_grad else None
        results.append(np.zeros(x.shape) if dx is None else dx.numpy())
    if relative_error(results[1], results[0]) > setup.tolerance:
        return bug(
            "under activation checkpointing dx differs",
            "checkpoint-differs",
            "a second forward pass on the same input must give the same output",
        )
    if setup.recipe.tracks:
        return note(
            "under activation checkpointing the running statistics are updated twice per step",
            "checkpoint-updates-twice",
        )
    return passed("activation checkpointing changes nothing")


@check("state.autocast")
def autocast(setup: Setup) -> Finding:
    layer = torch_layer(setup, dtype="float32")
    import torch

    x = sample(setup.shape)
    load(setup, layer, x, True)
    expected = layer.forward(x.astype(np.float32), True)
    load(setup, layer, x, True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = layer.run(torch.from_numpy(x.astype(np.float32)), True)
    off = error(y.float().numpy(), expected)
    if off > 0.05:
        return bug(
            f"under autocast the output is wrong by {off:.3g}",
            "autocast",
            "statistics in float32: with torch.autocast(..., enabled=False) around them",
        )
    return passed(f"autocast keeps the output within {off:.3g}")


@check("state.threads")
def threads(setup: Setup) -> Finding:
    """Another call in between any two lines of one, then several threads at once, all in evaluation."""
    layer = torch_layer(setup)
    import torch

    inputs = [sample((setup.shape[0] + i, *setup.shape[1:]), 1.0 + i, seed=i) for i in range(4)]
    load(setup, layer, inputs[0], False)
    layer.module.eval()

    def call(i: int) -> np.ndarray:
        with torch.no_grad():
            return guarded(layer.module, torch.from_numpy(inputs[i])).numpy()

    alone = [call(i) for i in range(len(inputs))]
    barrier = Barrier(len(inputs))

    def hammer(i: int) -> bool:
        barrier.wait()
        return any(spoiled(i, lambda: call(i)) for _ in range(10))

    def spoiled(i: int, run: Callable[[], np.ndarray]) -> bool:
        try:
            got = run()
        except TargetFailure:  # it works alone
            return True
        return got.shape != alone[i].shape or error(got, alone[i]) > setup.tolerance

    mixed = spoiled(0, lambda: interrupted(lambda: call(0), lambda: call(1)))
    if not mixed:
        with ThreadPoolExecutor(len(inputs)) as pool:
            mixed = any(list(pool.map(hammer, range(len(inputs)))))
    if mixed:
        return bug(
            "several threads at once get each other's values",
            "not-thread-safe",
            "keep nothing of a call on the layer, its class or its module",
        )
    return passed("threads in evaluation keep apart")


def interrupted(call: Callable[[], np.ndarray], other: Callable[[], object]) -> np.ndarray:
    """What `call` answers when `other` runs in full before each of its lines: threads, without their chance."""

    def step(frame: FrameType, event: str, arg: object) -> Any:
        if f"{os.sep}torch{os.sep}" in frame.f_code.co_filename:
            return None
        if event == "line":
            other()  # the interpreter does not trace inside a trace function
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        return call()
    finally:
        sys.settrace(before)


@check("state.double-backward")
def double_backward(setup: Setup) -> Finding:
    """Second derivatives: right, or a clear error; never wrong."""
    layer = torch_layer(setup)
    import torch

    shape = (
        (2, setup.recipe.channels, *[2] * (len(setup.shape) - 2)) if setup.recipe.over != "trailing" else setup.shape
    )
    x = sample(shape)
    load(setup, layer, x, True)
    given = torch.from_numpy(x).requires_grad_(True)
    try:
        y = layer.run(given, True)
        (dx,) = torch.autograd.grad(y, given, torch.from_numpy(sample(shape, 1.0, seed=50)), create_graph=True)
        if not dx.requires_grad:
            return note("second derivatives are not available: dx carries no graph", "no-double-backward")
        v = torch.from_numpy(sample(shape, 1.0, seed=51))
        (second,) = torch.autograd.grad(dx, given, v, allow_unused=True)
        if second is None:
            second = torch.zeros_like(given)
    except (TargetFailure, RuntimeError) as e:
        return note(f"second derivatives raise: {str(e).splitlines()[0]}", "no-double-backward")

    def slope(h: float) -> np.ndarray:
        moved = torch.from_numpy(x + h * direction).requires_grad_(True)
        (out,) = torch.autograd.grad(layer.run(moved, True), moved, torch.from_numpy(sample(shape, 1.0, seed=50)))
        return out.numpy()

    direction = setup.rng().normal(size=shape)
    expected = float((((slope(1e-5) - slope(-1e-5)) / 2e-5) * v.numpy()).sum())
    got = float((second.numpy() * direction).sum())
    if setup.precise and abs(got - expected) > 1e-4 * (1 + abs(expected)):
        return bug(
            f"the second derivative is wrong: {got:.6g}, differences of dx give {expected:.6g}",
            "double-backward-wrong",
            "once_differentiable where second derivatives are not implemented",
        )
    return passed("second derivatives are right")


@check("state.compile", slow=True)
def compiled(setup: Setup) -> Finding:
    """torch.compile: the same values; graph breaks are told."""
    layer = torch_layer(setup)
    import torch

    x = sample(setup.shape)
    load(setup, layer, x, True)
    expected = layer.forward(x, True)
    state = snapshot(layer)
    load(setup, layer, x, True)
    layer.module.train()
    try:
        torch._dynamo.reset()
        broken = torch._dynamo.explain(layer.module)(torch.from_numpy(x)).graph_break_count
        torch._dynamo.reset()
        load(setup, layer, x, True)
        got = torch.compile(layer.module, backend="aot_eager")(torch.from_numpy(x)).detach().numpy()
    except Exception as e:
        return bug(f"torch.compile fails: {type(e).__name__}: {str(e).strip().splitlines()[0]}", "compile-fails")
    finally:
        torch._dynamo.reset()
    if error(got, expected) > 10 * setup.tolerance or any(error(snapshot(layer)[k], state[k]) > 1e-6 for k in state):
        return bug("under torch.compile the output or the running statistics differ", "compile-differs")
    if broken < 0:
        return note("torch.compile leaves the layer to the interpreter", "graph-break")
    if broken:
        return note(f"torch.compile breaks the graph {broken} time(s)", "graph-break")
    return passed("torch.compile takes the layer in one graph, with the same values")


@check("state.export", slow=True)
def export(setup: Setup) -> Finding:
    """ONNX export in evaluation, run by onnxruntime where installed."""
    layer = torch_layer(setup, dtype="float32")
    try:
        onnxruntime, *_ = (import_module(m) for m in ("onnxruntime", "onnx", "onnxscript"))
    except ImportError as e:
        return skip(f"ONNX export was not tried: {e.name} is not installed")
    import torch

    x = sample(setup.shape).astype(np.float32)
    load(setup, layer, x, False)
    expected = layer.forward(x, False)
    layer.module.eval()
    try:
        program = torch.onnx.export(layer.module, (torch.from_numpy(x),), dynamo=True, verbose=False)
        model = program.model_proto.SerializeToString() if program is not None else b""
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x})
    except Exception as e:
        return note(f"ONNX export fails: {type(e).__name__}: {str(e).strip().splitlines()[0]}", "export-fails")
    if error(got, expected) > 1e-4:
        return bug(f"the exported ONNX model differs by {error(got, expected):.3g}", "export-differs")
    return passed("the exported ONNX model gives the same values")
