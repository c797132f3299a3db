"""Beyond the first derivative, and under the transforms of torch.func: as torch's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import normlab
from normlab.layers import operators
from normlab.norms import family as norms
from normlab.norms import grid
from normlab.norms.grid import Affine, rsqrt
from tests.kernels.test_positions import KINDS, pair
from tests.layers.parity import (
    ACTS,
    BACKENDS,
    NORMS,
    SHAPES,
    Case,
    arrange,
    backend,
    check,
    our_layer,
    randomize,
    rank_of,
)

SMALL = (3, 4, 2, 2)
LAYOUTS = ("first", "last")
deprecated_in_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by torch, of what it uses itself
Function = Callable[..., Any]


def functional(layer: nn.Module, residual: bool = False) -> tuple[Function, list[Tensor]]:
    """A layer as a function of its input, a residual if there is one, and its parameters; and those."""
    names = [name for name, _ in layer.named_parameters()]

    def apply(x: Tensor, *others: Tensor) -> Tensor:
        added, values = others[: int(residual)], others[int(residual) :]
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, *added))
        return y

    return apply, list(layer.parameters())


def layer_and_input(norm: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(3)
    layer = our_layer(Case(norm, SMALL, dtype, **options))
    randomize(layer, generator)
    return layer, torch.randn(SMALL, dtype=dtype, generator=generator)


# --- one derivative, by the operations that have further ones: the oracle of every other test applies -----------------


def cases() -> list[Case]:
    shapes = [
        Case(n, SHAPES[rank], layout=layout, grad_layout=layout)
        for n in NORMS
        for rank in rank_of(n)
        for layout in LAYOUTS
    ]
    forms = [Case(n, act=act, residual=True, dtype=torch.float64) for n in NORMS for act in ACTS]
    narrow = [Case(n, dtype=dtype, residual=True) for n in NORMS for dtype in (torch.bfloat16, torch.float16)]
    far = [
        Case(n, (3, 8, 9, 7), mean=mean, layout=layout, grad_layout=layout)
        for n in NORMS
        for mean in (10.0, 1e4)
        for layout in LAYOUTS
    ]
    kept = [
        Case(n, training=training, steps=2, options=options)
        for n, options in (("bn", {"momentum": None}), ("bin", {}), ("in", {"track_running_stats": True}))
        for training in (True, False)
    ]
    return [*shapes, *forms, *narrow, *far, *kept]


@pytest.mark.covering("norm", "layout", "dtype")
@pytest.mark.parametrize("case", cases(), ids=str)
def test_agrees_with_the_oracle(case: Case) -> None:
    with forward_ad.dual_level():
        check(case)


@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (3, 4, 0, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_no_elements(norm: str, shape: tuple[int, ...]) -> None:
    layer, _ = layer_and_input(norm)
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()], create_graph=True)
    assert gradients[0].shape == shape
    assert all(torch.equal(g, torch.zeros_like(p)) for g, p in zip(gradients[1:], layer.parameters(), strict=True))


# --- two derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.covering("norm", "layout", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layout", "act", "residual"),
    [("first", None, False), ("last", None, True), ("first", "gelu", False), ("last", "silu", True)],
)
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_are_numerical_ones(
    norm: str, layout: str, act: str | None, residual: bool, training: bool, backend_name: str
) -> None:
    layer, x = layer_and_input(norm, act=act)
    apply, parameters = functional(layer.train(training), residual)
    x = arrange(x, layout).requires_grad_()
    added = [torch.randn(SMALL, dtype=torch.float64, requires_grad=True)] if residual else []
    with backend(backend_name):
        assert torch.autograd.gradgradcheck(apply, (x, *added, *parameters), fast_mode=True)


@pytest.mark.covering("norm", "layout")
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("layout", ["first", "last", "sliced"])
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_penalty(norm: str, layout: str, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: with a constant upstream gradient a second derivative came out as none at all; a copy of an input that is
    not dense had no history, so that its second derivative would have been none."""
    layer, x = layer_and_input(norm)

    def penalty(run: Function) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(run(arrange(leaf, layout)).sigmoid().sum(), leaf, create_graph=True)
        return list(torch.autograd.grad((dx.norm() - 1) ** 2, [leaf, *layer.parameters()]))

    def in_torch(v: Tensor) -> Tensor:
        with forward_ad.dual_level():
            y: Tensor = layer(v)
        return y

    want = penalty(in_torch)
    monkeypatch.setattr(operators, "watched", lambda x: watched)
    got = penalty(layer)
    assert all(g.abs().max() > 0 for g in got)
    torch.testing.assert_close(got, want)


def test_third_derivative() -> None:
    layer, x = layer_and_input("gn")
    stock = nn.GroupNorm(2, 4, dtype=torch.float64)
    stock.load_state_dict(layer.state_dict())
    found = []
    for one in (layer, stock):
        leaf = x.clone().requires_grad_()
        g = one(leaf).sin().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sum(), leaf, create_graph=True)
            g = g * leaf
        found.append(g.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("norm", NORMS)
def test_within_recomputed_outputs_and_checkpoints(norm: str) -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = layer_and_input(norm)

    def penalty(run: Function) -> Tensor:
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(run(run(leaf)).sin().sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaf)[0]

    want = penalty(layer)
    with normlab.recomputed_outputs():
        assert torch.equal(penalty(layer), want)
    torch.testing.assert_close(penalty(lambda v: checkpoint(layer, v, use_reentrant=False)), want)


def test_frozen_parts_have_no_gradient() -> None:
    layer, x = layer_and_input("bn")
    layer.bias.requires_grad_(False)
    added = torch.randn_like(x).requires_grad_()
    (g,) = torch.autograd.grad(layer(x, added).sin().sum(), added, create_graph=True)
    g.sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is None


def test_running_statistics_changed_in_between() -> None:
    """In evaluation they are constants of the output, which its second derivative asks for once more."""
    layer, x = layer_and_input("bn")
    x = x.requires_grad_()
    y = layer.eval()(x).sin().sum()
    layer.train()(x.detach())
    torch.autograd.grad(y, x, retain_graph=True)
    with pytest.raises(RuntimeError, match="running statistics that a second derivative needs were changed"):
        torch.autograd.grad(y, x, create_graph=True)


def test_constants_of_a_norm_of_ones_own_stay_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: `stop_gradient` stopped the layers' own tape, and not torch's."""
    monkeypatch.setattr(norms, "_REGISTRY", dict(norms._REGISTRY))

    @normlab.register_norm("halted")
    def halted(m: Any, p: Any) -> Affine:
        return Affine(p.weight * rsqrt(grid.stop_gradient(m.var) + p.eps), m.mean, p.bias)

    layer = normlab.make_norm("halted", 4, dtype=torch.float64)
    x = torch.randn(SMALL, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x).sin().sum(), x)
    (got,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    torch.testing.assert_close(got, want)


# --- torch.func ------------------------------------------------------------------------------------------------------


@deprecated_in_torch
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_forward_mode_and_batches_of_gradients(norm: str, training: bool) -> None:
    layer, x = layer_and_input(norm)
    apply, parameters = functional(layer.train(training))
    assert torch.autograd.gradcheck(
        apply, (x.requires_grad_(), *parameters), fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_per_sample(norm: str) -> None:
    """As one by one, for all at once."""
    layer, x = layer_and_input(norm)
    values = {k: v.detach() for k, v in layer.named_parameters()}
    layer.eval()

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        total: Tensor = torch.func.functional_call(layer, values, (sample[None],)).sin().sum()
        return total

    gradient = torch.func.grad(loss)
    at_once = torch.func.vmap(gradient, (None, 0))(values, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).sin().sum().backward()
        for k in values:
            torch.testing.assert_close(at_once[k][i], layer.get_parameter(k).grad)


@deprecated_in_torch
@pytest.mark.parametrize("norm", NORMS)
def test_hessian(norm: str) -> None:
    layer, x = layer_and_input(norm)

    def loss(x: Tensor) -> Tensor:
        total: Tensor = layer(x).sin().sum()
        return total

    layer.eval()
    want = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), want)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, x, vectorize=True), want)


@pytest.mark.parametrize(("norm", "options"), [("bn", {}), ("bin", {}), ("in", {"track_running_stats": True})])
def test_statistics_of_several_layers_at_once(norm: str, options: dict[str, bool]) -> None:
    """An ensemble: each layer of a stack moves its own running statistics."""
    _, x = layer_and_input(norm)
    stack = [our_layer(Case(norm, SMALL, torch.float64, options=options)) for _ in range(2)]
    randomize(stack[1], torch.Generator().manual_seed(7))
    params, buffers = torch.func.stack_module_state(stack)
    for v in buffers.values():
        v.requires_grad_(False)

    def apply(params: Any, buffers: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(stack[0], (params, buffers), (x,))
        return y

    y = torch.func.vmap(apply, (0, 0, None))(params, buffers, x)
    for i, layer in enumerate(stack):
        torch.testing.assert_close(y[i], layer(x))
        for k, v in layer.named_buffers():
            torch.testing.assert_close(buffers[k][i], v)


def test_statistics_that_a_transform_cannot_move() -> None:
    layer, x = layer_and_input("bn")
    with pytest.raises(RuntimeError, match=r"call \.eval\(\)"):
        torch.func.vmap(layer)(x.expand(2, *SMALL))


# --- statistics per position -----------------------------------------------------------------------------------------


@pytest.mark.covering("kind", "backend_name")
@deprecated_in_torch
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_positions(kind: str, backend_name: str, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(kind, 4, torch.float64)
    apply, parameters = functional(ours)
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    forward = {} if watched else {"check_forward_ad": True, "check_batched_grad": True}
    monkeypatch.setattr(operators, "watched", lambda x: watched)
    with backend(backend_name):
        assert torch.autograd.gradcheck(apply, (x, *parameters), fast_mode=True, **forward)
        assert torch.autograd.gradgradcheck(apply, (x, *parameters), fast_mode=True)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["first", "last", "sliced"])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_as_the_kernels(kind: str, layout: str, dtype: torch.dtype) -> None:
    """Bug: a copy of an input that is not dense has no history; its second derivative would have been none."""
    ours, _ = pair(kind, 6, dtype)
    leaf = torch.randn(3, 6, 6).to(dtype).requires_grad_()
    y = ours(arrange(leaf, layout))
    (want,) = torch.autograd.grad(y.sin().sum(), leaf)
    (got,) = torch.autograd.grad(ours(arrange(leaf, layout)).sin().sum(), leaf, create_graph=True)
    assert got.requires_grad
    tolerance = {"atol": 0.05, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(got, want, **tolerance)
    with forward_ad.dual_level():
        torch.testing.assert_close(ours(arrange(leaf, layout)), y, **tolerance)
    (second,) = torch.autograd.grad(got.square().sum(), leaf)
    assert second.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_each_sample(kind: str) -> None:
    ours, _ = pair(kind, 6)
    x = torch.randn(3, 6, 6)
    torch.testing.assert_close(torch.func.vmap(lambda v: ours(v[None])[0])(x), ours(x))
