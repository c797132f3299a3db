"""The operators of statistics per position: torch's own checks, and no graph break under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import library, nn

from normlab.kernels import use_backend
from normlab.layers import position_operators
from tests.kernels.test_positions import KINDS, pair, run
from tests.layers.parity import BACKENDS, backend

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize(("shape", "size", "centred"), [((4, 5, 6), 6, True), ((4, 6, 5), 0, True), ((4, 6), 6, False)])
def test_opcheck(shape: tuple[int, ...], size: int, centred: bool, backend_name: str) -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, 6, 6))
    with backend(backend_name):
        for parameters in ((weight, bias), (weight, None), (None, None)):
            arguments = (x, *parameters, size, 1e-5, centred)
            library.opcheck(position_operators.OPERATOR, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_without_a_graph_break(kind: str, layout: Any) -> None:
    """The same numbers as the layer by itself, forward and backward."""
    ours, _ = pair(kind, 6)
    x, dy = (torch.randn(2, 6, 6, 6).to(memory_format=layout) for _ in range(2))
    compiled: Any = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for a, b in zip(run(compiled, x, dy), run(ours, x, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_exported() -> None:
    model = nn.Sequential(pair("layer", 6)[0], pair("channel", 3)[0], pair("rms", 6)[0])
    x = torch.randn(2, 3, 6)
    program = torch.export.export(model, (x,), strict=False)
    assert "normalize_positions" in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing(kind: str) -> None:
    from torch.utils.checkpoint import checkpoint

    ours, _ = pair(kind, 6)
    x, dy = torch.randn(3, 6, 6, requires_grad=True), torch.randn(3, 6, 6)
    once = checkpoint(ours, x, use_reentrant=False)
    want = torch.autograd.grad(ours(x), [x, *ours.parameters()], dy)
    for a, b in zip(torch.autograd.grad(once, [x, *ours.parameters()], dy), want, strict=True):
        assert torch.equal(a, b)


def test_backends_of_the_two_directions_may_not_differ_silently() -> None:
    """What the forward pass keeps of a position is another number of numbers on each backend."""
    x, weight = torch.randn(4, 6), torch.randn(6)
    with use_backend("reference"):
        _, kept = position_operators.OPERATOR(x, weight, None, 6, 1e-5, True)
    with pytest.raises(RuntimeError, match="keeps 12 numbers and got 8: it runs on another backend"):
        position_operators.OPERATOR_BACKWARD(x, x, weight, kept, 6, True, [True, False])
