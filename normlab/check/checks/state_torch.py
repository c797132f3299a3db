"""State of torch Modules: modes of autograd, saving and copying, threads, compilers, export."""

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

from normlab.check.checks.state import snapshot
from normlab.check.diagnose import error, relative_error
from normlab.check.dialect import Setup
from normlab.check.probe import bug, check, load, note, passed, sample, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import TargetFailure
from normlab.check.subjects.base import guarded


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
        results.append(layer.dx(y, given, dy).numpy())
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


@check("state.parametrized")
def parametrized(setup: Setup) -> Finding:
    """A parametrization (weight norm, spectral norm, pruning) takes a parameter's place under its name."""
    layer = torch_layer(setup)
    import torch
    from torch.nn.utils import parametrize

    class Doubled(torch.nn.Module):
        def forward(self, held: torch.Tensor) -> torch.Tensor:
            return 2 * held

    x = sample(setup.shape)
    own = dict(layer.module.named_parameters(recurse=False))
    names = [n for n in own if layer.role(n) in ("weight", "bias")]
    if not names:
        return skip("no weight or bias of the layer's own")
    for name in names:
        for training in (True, False):
            changed = torch_layer(setup)
            load(setup, changed, x, training)
            with torch.no_grad():
                dict(changed.module.named_parameters())[name].mul_(2)
            expected = changed.forward(x, training)
            layer = torch_layer(setup)
            load(setup, layer, x, training)
            parametrize.register_parametrization(layer.module, name, Doubled())
            try:
                got = layer.forward(x, training)
            except TargetFailure as e:
                return _report_bypass(f"a parametrization of {name} makes the layer fail: it {e}", name)
            if error(got, expected) > setup.tolerance:
                return _report_bypass(f"a parametrization of {name} is ignored", name)
    return passed(f"parametrizations of {' and '.join(names)} are obeyed")


def _report_bypass(message: str, name: str) -> Finding:
    return bug(
        f"{message}: the parameter is read past its attribute",
        "reads-past-attribute",
        f"read self.{name}, never self._parameters[{name!r}]",
    )


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


@check("state.checkpointing", slow=True)
def checkpointing(setup: Setup) -> Finding:
    """Activation checkpointing: the same gradient; most layers' statistics move twice."""
    layer = torch_layer(setup)
    import torch
    from torch.utils.checkpoint import checkpoint

    x, dy = sample(setup.shape), torch.from_numpy(sample(setup.shape, 1.0, seed=50))
    results, states = [], []
    for checkpointed in (False, True):
        load(setup, layer, x, True)
        layer.module.train()
        given = torch.from_numpy(x).requires_grad_(True)
        y = guarded(checkpoint, layer.module, given, use_reentrant=False) if checkpointed else layer.run(given, True)
        results.append(layer.dx(y, given, dy).numpy())
        states.append([v.clone() for v in layer.module.buffers() if v.is_floating_point()])  # not the count
    if relative_error(results[1], results[0]) > setup.tolerance:
        return bug(
            "under activation checkpointing dx differs",
            "checkpoint-differs",
            "a second forward pass on the same input must give the same output",
        )
    if not all(torch.equal(a, b) for a, b in zip(*states, strict=True)):
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
    with torch.autocast("cpu", dtype=torch.bfloat16), layer.silently():
        y = layer.run(torch.from_numpy(x.astype(np.float32)), True).detach()
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
    """What `call` returns when `other` runs in full before each of its lines: threads, without their chance."""

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
        dx = layer.dx(y, given, torch.from_numpy(sample(shape, 1.0, seed=50)), create_graph=True)
        if not dx.requires_grad:
            return note("second derivatives are not available: dx carries no graph", "no-double-backward")
        v = torch.from_numpy(sample(shape, 1.0, seed=51))
        second = layer.dx(dx, given, v)
    except (TargetFailure, RuntimeError) as e:
        return note(f"second derivatives raise: {str(e).splitlines()[0]}", "no-double-backward")

    def slope(h: float) -> np.ndarray:
        moved = torch.from_numpy(x + h * direction).requires_grad_(True)
        return layer.dx(layer.run(moved, True), moved, torch.from_numpy(sample(shape, 1.0, seed=50))).numpy()

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
    """torch.compile: the same values; graph breaks are reported."""
    layer = torch_layer(setup)
    import torch

    x = sample(setup.shape)
    load(setup, layer, x, True)
    expected = layer.forward(x, True)
    state = snapshot(layer)
    load(setup, layer, x, True)
    layer.module.train()
    graphs: list[Any] = []

    def as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    try:
        torch.compiler.reset()
        watched: Any = torch.compile(layer.module, backend=as_it_is)
        watched(torch.from_numpy(x))
        broken = len(graphs) - 1
        torch.compiler.reset()
        load(setup, layer, x, True)
        compiled: Any = torch.compile(layer.module, backend="aot_eager")
        got = compiled(torch.from_numpy(x)).detach().numpy()
    except Exception as e:
        return bug(f"torch.compile fails: {type(e).__name__}: {str(e).strip().splitlines()[0]}", "compile-fails")
    finally:
        torch.compiler.reset()
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
