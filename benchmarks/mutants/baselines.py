"""Other ways of testing a layer, for comparison: gradcheck alone, ONNX's vectors, torch's module tests, a course's.

Each returns None when it is content and the complaint otherwise. They are written after what those projects
publish: the shapes, the quantities compared and the tolerances; expected values come from the oracle.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.mutants.base import ORIGINALS
from normlab.check.dialect import DIALECTS
from normlab.check.oracle import Case, Recipe, forward, updated_running
from normlab.check.subjects import Subject
from normlab.check.subjects.torch_module import TorchSubject

Complaint = str | None


def complaint(check: Callable[[Subject, str], Complaint], subject: Subject, original: str) -> Complaint:
    """Run a check; whatever it raises is a complaint."""
    try:
        return check(subject, original)
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"


class _PairFunction(torch.autograd.Function):
    """A NumPy pair as a differentiable function of torch."""

    @staticmethod
    def forward(ctx: Any, layer: Subject, training: bool, roles: tuple[str, ...], x: Any, *values: Any) -> Any:
        layer.set_parameters({r: v.detach().numpy() for r, v in zip(roles, values, strict=True)})
        y = layer.forward(x.detach().numpy(), training)
        ctx.layer, ctx.tape, ctx.roles = layer, layer.tape, roles
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.layer.tape = ctx.tape
        got = ctx.layer.backward(grads[0].contiguous().numpy())
        return None, None, None, *(torch.from_numpy(np.array(got[k])) for k in ("x", *ctx.roles))


def differentiable(layer: Subject, training: bool) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """The layer as a function of the input and its parameters, and the parameters."""
    if isinstance(layer, TorchSubject):
        named = dict(layer.module.named_parameters())
        layer.module.train(training)

        def call(x: Any, *values: Any) -> Any:
            return torch.func.functional_call(layer.module, dict(zip(named, values, strict=True)), (x,))

        return call, [p.detach().clone().requires_grad_(True) for p in named.values()]
    roles = tuple(layer.parameters)
    start = [torch.from_numpy(np.array(v)).requires_grad_(True) for v in layer.parameters.values()]
    return lambda x, *values: _PairFunction.apply(layer, training, roles, x, *values), start


def _input(layer: Subject, original: str, n: int = 3, seed: int = 0) -> torch.Tensor:
    c = layer.options.channels
    shape = {"layer_numpy": (n, c), "layer_torch": (n, 2, c), "rms_torch": (n, 2, c)}.get(original, (n, c, 2, 2))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradcheck(subject: Subject, original: str) -> Complaint:
    """torch.autograd.gradcheck with its defaults, input and parameters, in training."""
    call, values = differentiable(subject.fresh(), True)
    torch.autograd.gradcheck(call, (_input(subject, original).requires_grad_(True), *values))
    return None


def recipe_of(subject: Subject, original: str, **changes: Any) -> Recipe:
    """The right recipe of an original."""
    kind = ORIGINALS[original][2]
    convention = DIALECTS["torch" if original.endswith("torch") else "teaching"]
    last = original in ("layer_numpy", "layer_torch", "rms_torch")
    recipe = Recipe(
        kind,
        subject.options.channels,
        subject.options.groups,
        eps=1e-6 if kind == "rms" else convention.eps,
        momentum=0.1,
        unbiased_running_var=convention.unbiased,
        tracks=subject.fresh().running is not None and kind in ("batch", "batch-instance"),
        over="trailing" if last else "sample",
    )
    return replace(recipe, **changes)


# ONNX's test vectors per operator: shape, groups, whether eps is 1e-2 in place of the default, training
VECTORS: dict[str, tuple[tuple[tuple[int, ...], int, bool, bool], ...]] = {
    "batch": tuple(((2, 3, 4, 5), 1, eps, training) for training in (False, True) for eps in (False, True)),
    "layer": (
        ((3, 4), 1, False, False),
        ((3, 4), 1, True, False),
        ((2, 3, 5), 1, True, False),
        ((2, 3, 4, 5), 1, False, False),
    ),
    "rms": (((3, 4), 1, False, False), ((2, 3, 5), 1, True, False), ((2, 3, 4, 5), 1, False, False)),
    "instance": (((1, 2, 1, 3), 1, False, False), ((2, 3, 4, 5), 1, True, False)),
    "group": (((3, 4, 2, 2), 2, False, False), ((3, 4, 2, 2), 2, True, False)),
}


def onnx_vectors(subject: Subject, original: str) -> Complaint:
    """The published vectors' shapes, float32, rtol 1e-3 (atol 1e-6, for theirs is 1e-7); no gradients."""
    kind = ORIGINALS[original][2]
    for shape, groups, wide_eps, training in VECTORS.get(kind, ()):
        if original == "layer_numpy" and len(shape) > 2:
            continue
        rng = np.random.default_rng(0)
        last = recipe_of(subject, original).over == "trailing"
        channels = shape[-1] if last else shape[1]
        built: dict[str, Any] = {"channels": channels, "dtype": "float32"}
        built |= {"groups": groups} if kind == "group" else {}
        built |= {"eps": 1e-2} if wide_eps else {}
        layer = subject.fresh(**built)
        recipe = recipe_of(subject, original, channels=channels, groups=groups)
        recipe = replace(recipe, eps=1e-2) if wide_eps else recipe
        x = rng.standard_normal(shape).astype(np.float32)
        values = {r: rng.standard_normal(channels).astype(np.float32) for r in layer.parameters}
        layer.set_parameters(values)
        running = None
        if recipe.tracks:
            running = rng.standard_normal(channels), rng.uniform(0, 1, channels)
            layer.set_running(*running)
            running = (_rounded(running[0]), _rounded(running[1]))
        case = Case(recipe, x, values.get("weight"), values.get("bias"), None, running, training)  # type: ignore[arg-type]
        if not np.allclose(layer.forward(x, training), forward(case), rtol=1e-3, atol=1e-6):
            return f"output differs for {shape}"
        if training and recipe.tracks:
            assert layer.running is not None
            for got, expected in zip(layer.running, updated_running(case), strict=True):
                if not np.allclose(got, expected, rtol=1e-3, atol=1e-6):
                    return "running statistics differ"
    return None


def _rounded(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32).astype(np.float64)


def _offers_second_derivatives(call: Callable[..., Any], x: torch.Tensor, values: list[torch.Tensor]) -> bool:
    """Whether the layer does not refuse to be differentiated twice, as once_differentiable does."""
    y = call(x, *values)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(True), create_graph=True)
    return type(dx.grad_fn).__name__ != "Error"


def torch_tests(subject: Subject, original: str) -> Complaint:
    """What torch's module tests ask of every module: runs, gradients, strides, layouts, copies; no value oracle."""
    for training in (True, False):
        layer = subject.fresh()
        call, values = differentiable(layer, training)
        x = _input(subject, original).requires_grad_(True)
        torch.autograd.gradcheck(call, (x, *values))
        if isinstance(layer, TorchSubject) and _offers_second_derivatives(call, x, values):
            torch.autograd.gradgradcheck(call, (x, *values))
        y = call(x, *values)
        strided = torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_(True)
        if not torch.allclose(call(strided, *values), y):
            return "non-contiguous input differs"
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        dy = torch.ones(*y.shape, 2, dtype=y.dtype)[..., 0]
        if not torch.allclose(torch.autograd.grad(y, x, dy)[0], dx):
            return "non-contiguous gradient differs"
    if not isinstance(subject, TorchSubject):
        return None
    layer = subject.fresh()
    assert isinstance(layer, TorchSubject)
    x = _input(subject, original)
    if x.ndim == 4:
        first = subject.fresh().module(x)
        last = subject.fresh().module(x.contiguous(memory_format=torch.channels_last))
        if not torch.allclose(first, last):
            return "channels-last differs"
    for dtype in (torch.float32, torch.bfloat16):
        moved = copy.deepcopy(layer.module).to(dtype)
        moved(x.to(dtype))
        if any(t.dtype is not dtype for t in moved.state_dict().values() if t.is_floating_point()):
            return "a tensor does not move"
    layer.module.train()
    layer.module(x)
    layer.module.eval()
    expected = layer.module(x)
    buffer = io.BytesIO()
    torch.save(layer.module, buffer)
    buffer.seek(0)
    if not torch.allclose(torch.load(buffer, weights_only=False)(x), expected):
        return "a saved and loaded module differs"
    trained = layer.module.train()(x)
    if ORIGINALS[original][2] in ("batch", "batch-instance") and torch.allclose(trained, expected):
        return "train and eval do not differ"
    return None


def course(subject: Subject, original: str) -> Complaint:
    """A course's notebook: means and deviations of the output, test time after many batches, numerical gradients."""
    recipe = recipe_of(subject, original)
    rng = np.random.default_rng(231)
    c = recipe.channels
    shape = (200, c) if recipe.over == "trailing" else (20, c, 4, 5)
    x = 5 * rng.standard_normal(shape) + 12
    layer = subject.fresh()

    def moments(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid = recipe.to_grid(y)
        return grid.mean(axis=recipe.axes), grid.std(axis=recipe.axes)

    ones = {r: np.zeros(c) if r == "bias" else np.ones(c) for r in layer.parameters}
    layer.set_parameters(ones)
    mean, std = moments(layer.forward(x, True))
    if recipe.centers and not (np.abs(mean).max() < 1e-3 and np.abs(std - 1).max() < 1e-2):
        return f"means {mean.ravel()[:3]}, stds {std.ravel()[:3]}"
    layer.set_parameters({r: np.full(c, 5.0 if r == "bias" else 3.0 if r == "weight" else 1.0) for r in ones})
    mean, std = moments(layer.forward(x, True))
    if recipe.centers and not (np.abs(mean - 5).max() < 1e-2 and np.abs(std - 3).max() < 3e-2):
        return "means and stds with gamma and beta"
    layer.set_parameters(ones)
    if recipe.tracks:
        for _ in range(50):
            layer.forward(5 * rng.standard_normal(shape) + 12, True)
        mean, std = moments(layer.forward(5 * rng.standard_normal(shape) + 12, False))
        if not (np.abs(mean).max() < 0.2 and np.abs(std - 1).max() < 0.1):
            return "means and stds at test time"
    call, values = differentiable(subject.fresh(), True)
    torch.autograd.gradcheck(call, (_input(subject, original, n=4).requires_grad_(True), *values))
    return None


BASELINES: dict[str, Callable[[Subject, str], Complaint]] = {
    "gradcheck alone": gradcheck,
    "ONNX's vectors": onnx_vectors,
    "torch's tests": torch_tests,
    "a course's checks": course,
}
