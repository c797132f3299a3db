"""Other ways of testing any layer, for comparison with the kit on the third and fourth set.

Each returns the complaint, or None when it is content. They are handed the layer's right recipe, which the kit has to
find out by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from normlab.check.checks.gradients import numeric_gradient
from normlab.check.dialect import Setup
from normlab.check.oracle import Array, Case, forward, updated_running
from normlab.check.probe import fresh, load
from normlab.check.subjects import TargetFailure, Unsupported
from normlab.check.subjects.torch_module import TorchSubject

Complaint = str | None


def _gradcheck(setup: Setup, training: bool) -> Complaint:
    """Slopes of the layer's own output, with gradcheck's tolerances, input and parameters."""
    layer = fresh(setup, setup.shape)
    if not layer.has_backward:
        return None
    case = load(setup, layer, np.random.default_rng(0).standard_normal(setup.shape), training)
    dy = np.random.default_rng(1).standard_normal(setup.shape)
    layer.forward(case.x, training)
    try:
        got = layer.backward(dy)
    except (Unsupported, TargetFailure):
        if training:
            raise
        return None  # no backward pass in evaluation
    for of, gradient in got.items():
        slope = numeric_gradient(layer, case, dy, of)
        if not np.allclose(gradient.reshape(slope.shape), slope, rtol=1e-3, atol=1e-4):
            return f"d{of} disagrees with the slope of the output"
    return None


def gradcheck(setup: Setup) -> Complaint:
    """What torch.autograd.gradcheck asks, in training."""
    return _gradcheck(setup, True)


def module_tests(setup: Setup) -> Complaint:
    """What torch's module tests ask of every module: gradients in both modes, strides, copies; no value is compared."""
    complaint = _gradcheck(setup, True) or _gradcheck(setup, False)
    if complaint:
        return complaint
    x = np.random.default_rng(0).standard_normal((*setup.shape, 2))
    apart, dense = (fresh(setup, setup.shape).forward(a, True) for a in (x[..., 0], np.ascontiguousarray(x[..., 0])))
    if not np.allclose(apart, dense):
        return "a non-contiguous input differs"
    layer = fresh(setup, setup.shape)
    if isinstance(layer, TorchSubject):
        layer.forward(dense, True)
        if not np.allclose(layer.forward(dense, False), _copied(layer).forward(dense, False)):
            return "a copy differs"
    return None


def _copied(layer: TorchSubject) -> TorchSubject:
    other = layer.fresh()
    other.module = copy.deepcopy(layer.module)
    return other


def onnx_vectors(setup: Setup) -> Complaint:
    """Outputs and running statistics of float32 inputs, rtol 1e-3 and atol 1e-6, as ONNX's vectors; no gradients."""
    for training in (True, False):
        layer = fresh(setup, setup.shape)
        x = np.random.default_rng(0).standard_normal(setup.shape)
        case = load(setup, layer, x, training)
        if not np.allclose(layer.forward(x, training), forward(case), rtol=1e-3, atol=1e-6):
            return "the output differs"
        if training and setup.recipe.tracks and layer.running is not None:
            pairs = zip(layer.running, updated_running(case), strict=True)
            if not all(np.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs):
                return "the running statistics differ"
    return None


def compare_with_torch(setup: Setup) -> Complaint:
    """A new layer beside torch's on one random input in training: the output and, where there is one, dx."""
    if setup.recipe.kind == "batch-instance":
        return None  # torch has none
    layer = fresh(setup, setup.shape)
    layer.set_parameters({r: np.full(v.size, float(r != "bias")) for r, v in layer.parameters.items()})
    x, dy = np.random.default_rng(0).standard_normal((2, *setup.shape))
    y, dx = _torch(Case(setup.recipe, x), dy)
    if not np.allclose(layer.forward(x, True), y, atol=1e-5):
        return "the output differs"
    if layer.has_backward and not np.allclose(layer.backward(dy)["x"], dx, atol=1e-5):
        return "dx differs"
    return None


def _torch(case: Case, dy: NDArray) -> tuple[Array, Array]:
    recipe = case.recipe
    grid = torch.from_numpy(recipe.to_grid(case.x).copy()).requires_grad_(True)
    n, g, k, s = grid.shape
    flat = grid.reshape(n, g * k, s)
    if recipe.kind == "batch":
        out = F.batch_norm(flat, None, None, training=True, eps=recipe.eps)
    elif recipe.kind == "rms":
        out = F.rms_norm(grid, (k, s), eps=recipe.eps)
    else:
        out = F.group_norm(flat, g, eps=recipe.eps)
    (dx,) = torch.autograd.grad(out, grid, torch.from_numpy(recipe.to_grid(dy).copy()).reshape(out.shape))
    return recipe.from_grid(out.detach().numpy().reshape(n, g, k, s), case.x.shape), recipe.from_grid(
        dx.numpy(), case.x.shape
    )


WAYS: dict[str, Callable[[Setup], Complaint]] = {
    "gradcheck": gradcheck,
    "module tests": module_tests,
    "ONNX's vectors": onnx_vectors,
    "compare with torch": compare_with_torch,
}


def complaint(way: Callable[[Setup], Complaint], wrong: Setup) -> Complaint:
    """The complaint of one way; whatever it raises is one."""
    try:
        return way(wrong)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
