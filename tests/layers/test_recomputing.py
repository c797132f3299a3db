"""Outputs that are computed again in the backward pass: the same gradients from less memory."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.layers import recomputing
from normlab.layers.norms import make_norm

NORMS = ("bn", "in", "bin", "ln", "gn")


class Chain(nn.Module):
    """Blocks of convolution, norm and ReLU with residuals, each taking the one before as its residual."""

    def __init__(self, norm: str, blocks: int = 3, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2 * blocks + 1))
        self.norms = nn.ModuleList(make_norm(norm, 8, **options) for _ in range(2 * blocks + 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.convs[0](x))
        for i in range(1, len(self.convs), 2):
            y = self.norms[i](self.convs[i](x))
            x = self.norms[i + 1](self.convs[i + 1](y), x)
        return x


def _trained(net: nn.Module, x: Tensor, keeping: AbstractContextManager[None]) -> list[Tensor]:
    """Every gradient and every buffer after a backward pass."""
    x = x.clone().requires_grad_()
    with keeping:
        loss = net(x).square().sum()
    loss.backward()
    assert x.grad is not None
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(grads) == len(list(net.parameters()))
    return [x.grad, *grads, *net.buffers()]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("act", [None, "relu", "gelu"])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_and_statistics_are_the_same_bit_for_bit(norm: str, act: str | None, training: bool) -> None:
    x = torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last if training else torch.contiguous_format)
    answers = [
        _trained(Chain(norm, act=act).train(training), x, keeping)
        for keeping in (nullcontext(), normlab.recomputed_outputs())
    ]
    for kept, recomputed in zip(*answers, strict=True):
        assert torch.equal(kept, recomputed)


@pytest.mark.parametrize("keeping", [nullcontext, normlab.recomputed_outputs])
def test_an_output_is_not_kept(keeping: type[AbstractContextManager[None]]) -> None:
    norm, conv = make_norm("bn", 4, act="relu"), nn.Conv2d(4, 4, 3)
    with keeping():
        y = norm(torch.randn(2, 4, 8, 8, requires_grad=True))
        gone = weakref.ref(y)
        z = conv(y)
    del y
    assert (gone() is None) == (keeping is not nullcontext)
    z.sum().backward()
    assert conv.weight.grad is not None


def test_a_chain_of_residuals_is_not_gone_through() -> None:
    chain = Chain("gn", blocks=4, act="relu")
    depths: list[int] = []
    with normlab.recomputed_outputs():
        known = recomputing._outputs.get()
        assert known is not None
        for norm in chain.norms:
            norm.register_forward_hook(lambda m, i, y: depths.append(known[y].depth if y in known else 0))
        chain(torch.randn(2, 8, 4, 4, requires_grad=True))
    # stem, then (inner, outer) of each block: an outer one whose residual took a residual itself is kept
    assert depths == [1, 1, 2, 1, 0, 1, 1, 1, 2]


def test_an_output_that_was_changed_in_place_is_what_was_made_of_it() -> None:
    norm, conv = make_norm("ln", 4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    grads = []
    for keeping in (nullcontext(), normlab.recomputed_outputs()):
        conv.zero_grad()
        with keeping:
            y = norm(x)
            y.mul_(2)
            z = conv(y)
        z.square().sum().backward()
        assert conv.weight.grad is not None
        grads.append(conv.weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.parametrize("act", [None, "relu"])
def test_a_residual_that_was_changed_in_place_is_what_was_made_of_it(act: str | None) -> None:
    """Bug: the residual was computed again as its layer had put it out."""
    first, second, conv = make_norm("gn", 4), make_norm("bn", 4, act=act), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    grads = []
    for keeping in (nullcontext(), normlab.recomputed_outputs()):
        with keeping:
            residual = first(x)
            residual.mul_(2)
            z = conv(second(x * 3, residual))
        grads.append(torch.autograd.grad(z.square().sum(), [x, conv.weight]))
    for kept, recomputed in zip(*grads, strict=True):
        assert torch.equal(kept, recomputed)


def test_an_output_is_computed_again_by_the_backend_that_computed_it() -> None:
    norm, conv = make_norm("in", 4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with normlab.recomputed_outputs(), normlab.use_backend("reference"):
        y = norm(x)
        known = recomputing._outputs.get()
        assert known is not None
        again = known[y]
        conv(y)
    assert torch.equal(again.recompute(), y)
    with normlab.use_backend("numba_cpu"):
        assert not torch.equal(norm(x), y)


def test_a_norm_of_a_norm_takes_its_output() -> None:
    norms, conv = [make_norm("gn", 4) for _ in range(3)], nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with normlab.recomputed_outputs():
        known = recomputing._outputs.get()
        assert known is not None
        outputs = [x]
        for norm in norms:
            outputs.append(norm(outputs[-1]))
        assert [known[y].depth if y in known else 0 for y in outputs[1:]] == [1, 2, 0]
        total = conv(outputs[-1]).square().sum()
    (found,) = torch.autograd.grad(total, x)
    (expected,) = torch.autograd.grad(conv(norms[2](norms[1](norms[0](x)))).square().sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("what", ["x", "weight", "another"])
def test_what_is_needed_must_not_change(what: str) -> None:
    norm, conv = make_norm("bn", 4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with normlab.recomputed_outputs():
        inner = x * 1
        z = conv(norm(inner)).exp()
        total = z.sum()
    with torch.no_grad():
        {"x": inner, "weight": norm.weight, "another": z}[what].add_(1)
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        total.backward()


def test_a_graph_is_gone_through_twice() -> None:
    chain, x = Chain("bn", act="relu"), torch.randn(2, 8, 4, 4, requires_grad=True)
    with normlab.recomputed_outputs():
        total = chain(x).sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(total, x)
    assert torch.equal(first, second)


def test_nothing_is_remembered_outside() -> None:
    with normlab.recomputed_outputs():
        assert recomputing.is_recording()
    assert not recomputing.is_recording()
