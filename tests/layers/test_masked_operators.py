"""Masked norms where their program is looked at before it is run: as the same layer called plainly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn

from normlab.errors import InputError
from normlab.layers import masked_operators, operators, plain
from tests.layers.parity import NORMS
from tests.layers.test_operators import FORMS, arguments, inputs, layer_of, results

MASK = (torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(7)) > 0.3).index_fill_(0, torch.tensor([1]), False)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function while somebody looks at the program, without the time that a compiler takes."""

    def call(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(operators, "watched", lambda x: True)
            return function(*given, **named)

    return call


def close(got: list[Tensor], want: list[Tensor]) -> None:
    """A gradient by hand and one by autograd, of the same dtype and memory order."""
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.stride()) == (w.dtype, w.stride())
        rtol = 1e-2 if g.element_size() < 4 else 1e-5
        torch.testing.assert_close(g, w, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("norm", [*NORMS, "brn", "sn", "ibn-a", "ghost:size=2"])
def test_operator_as_plain(norm: str, form: tuple[str | None, bool], watched: Callable[..., Any]) -> None:
    act, residual = form
    for training in (True, False):
        layer, given = layer_of(norm, act, training), inputs(residual)
        other = copy.deepcopy(layer)
        for _ in range(2):
            want = results(layer, partial(layer, mask=MASK), given)
            close(results(other, partial(watched, other, mask=MASK), given), want)


@pytest.mark.parametrize("mask", [MASK.float(), MASK[:, None], torch.zeros(3, 5, 4)], ids=["float", "4D", "nothing"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_masks_and_options(mask: Tensor, options: dict[str, Any], watched: Callable[..., Any]) -> None:
    for given in (inputs(True, torch.channels_last), inputs(False, dtype=torch.bfloat16)):
        layer = layer_of("bn", **options)
        other = copy.deepcopy(layer)
        want = results(layer, partial(layer, mask=mask), given)
        close(results(other, partial(watched, other, mask=mask), given), want)


def test_what_a_mask_leaves_out_has_no_gradient(watched: Callable[..., Any]) -> None:
    x, residual = inputs(True)
    gone = ~MASK[:, None].expand_as(x)
    x[gone], residual[gone] = torch.nan, torch.inf
    found = results(layer := layer_of("bn", "silu"), partial(watched, layer, mask=MASK), [x, residual])
    assert all(v.isfinite().all() for v in found)
    assert not any(v[gone].any() for v in found[:3])


# Bug: with a mask, channels-last went in and channels-first came out.
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_memory_order(norm: str) -> None:
    (x,) = inputs(False, torch.channels_last)
    assert layer_of(norm)(x, mask=MASK).stride() == x.stride()


@pytest.mark.parametrize("form", FORMS[1:], ids=str)
def test_opcheck(form: tuple[str | None, bool]) -> None:
    act, residual = form
    x, added, *rest = arguments(layer_of("bn", act), inputs(residual))
    library.opcheck(masked_operators.OPERATOR, (x, added, MASK, *rest, ""))


def test_second_derivatives(watched: Callable[..., Any]) -> None:
    layer, (x,) = layer_of("bn", "silu"), inputs(False)
    found = []
    for call in (layer, partial(watched, layer)):
        x = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(call(x, mask=MASK).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0])
    torch.testing.assert_close(*found)


class Masked(nn.Module):
    def __init__(self, norm: str, training: bool) -> None:
        super().__init__()
        self.layer = layer_of(norm, "relu", training)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, x, mask=mask)


# Bug: whether a mask keeps anything, and how many, was read in Python, which broke the graph.
@pytest.mark.parametrize(("norm", "training"), [("bn", True), ("bn", False), ("gn", True)])
def test_compiled_and_exported(norm: str, training: bool) -> None:
    model = Masked(norm, training)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for mask in (MASK, torch.zeros_like(MASK)):
        want = results(model, partial(model, mask=mask), inputs(False))
        close(results(other, partial(compiled, mask=mask), inputs(False)), want)
    (x,) = inputs(False)
    program = torch.export.export(third, (x, MASK))
    assert "normalize_masked" in str(program.graph)
    loaded = program.module()
    torch.testing.assert_close(loaded(x, MASK), model.layer(x, x, mask=MASK))


# Bug: not looked at while compiling.
def test_a_wrong_mask_is_refused_in_a_graph(watched: Callable[..., Any]) -> None:
    layer, (x,) = layer_of("bn"), inputs(False)
    with pytest.raises(InputError, match="mask: expected true and false, or 1 and 0"):
        watched(layer, x, mask=-torch.ones(3, 5, 4))
    one = torch.zeros(3, 5, 4)
    one[1, 2, 3] = 1
    with pytest.raises(InputError, match=r"1 value per channel when training, got a mask of shape \(3, 5, 4\)"):
        watched(layer, x, mask=one)
    watched(layer.eval(), x, mask=one)


def test_in_onnx_export_it_is_torchs_operations(monkeypatch: pytest.MonkeyPatch, watched: Callable[..., Any]) -> None:
    layer, (x,) = layer_of("gn"), inputs(False)
    monkeypatch.setattr(plain, "is_wanted", lambda x: True)
    monkeypatch.setattr(masked_operators, "OPERATOR", None)
    torch.testing.assert_close(watched(layer, x, mask=MASK), layer(x, mask=MASK))
