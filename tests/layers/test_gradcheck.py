"""Numerical derivatives in float64, of input and parameters, for every norm on every backend."""

from __future__ import annotations

import pytest
import torch

from tests.layers.parity import BACKENDS, NORMS, Case, arrange, backend, our_layer, randomize

MODES = [
    (norm, training, track)
    for norm in NORMS
    for training in (True, False)
    for track in ((None, False) if norm in ("bn", "bin") else (None, True) if norm == "in" else (None,))
]


@pytest.mark.covering("norm", "training", "track", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(("norm", "training", "track"), MODES)
def test_gradcheck(norm: str, training: bool, track: bool | None, layout: str, backend_name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    options = {} if track is None else {"track_running_stats": track}
    case = Case(norm, (3, 4, 2, 2), torch.float64, training=training, options=options)
    layer = our_layer(case).train(training)
    randomize(layer, generator)
    x = arrange(torch.randn(case.shape, dtype=torch.float64, generator=generator), layout).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def apply(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    with backend(backend_name):
        # the fast mode projects the Jacobians on random vectors
        assert torch.autograd.gradcheck(apply, (x, *parameters), fast_mode=norm != "bin")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_input_changed_between_forward_and_backward_raises(norm: str, training: bool) -> None:
    x = torch.randn(3, 4, 2, 2)
    layer = our_layer(Case(norm, (3, 4, 2, 2))).train(training)
    y = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("norm", NORMS)
def test_weight_changed_between_forward_and_backward_raises(norm: str) -> None:
    layer = our_layer(Case(norm, (3, 4, 2, 2), options={"affine": True}))
    y = layer(torch.randn(3, 4, 2, 2, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("norm", NORMS)
def test_two_forwards_before_two_backwards(norm: str) -> None:
    """Each application keeps its own numbers."""
    layer = our_layer(Case(norm, (3, 4, 2, 2)))
    inputs = [torch.randn(3, 4, 2, 2, requires_grad=True) for _ in range(2)]
    apart = []
    for x in inputs:
        apart.append(torch.autograd.grad(layer(x).square().sum(), x)[0])
    outputs = [layer(x).square().sum() for x in inputs]
    for x, y, want in zip(inputs, outputs, apart, strict=True):
        assert torch.equal(torch.autograd.grad(y, x)[0], want)


def test_backward_twice_through_a_kept_graph() -> None:
    x = torch.randn(3, 4, 2, 2, requires_grad=True)
    y = our_layer(Case("bin", (3, 4, 2, 2)))(x).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("norm", NORMS)
def test_frozen_input_and_parameters(norm: str) -> None:
    """Only what asks for a gradient gets one; without any there is no graph."""
    x = torch.randn(3, 4, 2, 2)
    layer = our_layer(Case(norm, (3, 4, 2, 2)))
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    with torch.no_grad():
        assert layer(x.requires_grad_()).grad_fn is None


@pytest.mark.parametrize("norm", NORMS)
def test_checkpointing(norm: str) -> None:
    """Activation checkpointing computes the same gradients."""
    from torch.utils.checkpoint import checkpoint

    layer = our_layer(Case(norm, (3, 4, 2, 2)))
    x = torch.randn(3, 4, 2, 2, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x).square().sum(), x)
    (got,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(got, want)
