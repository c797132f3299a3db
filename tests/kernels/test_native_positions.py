"""Statistics per position called through C++: the same numbers as from Python, and all that autograd does to a layer.

The tests that need it built are slow: see `test_native`.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normlab
from normlab.layers.norms import ChannelNorm, LayerNorm, RMSNorm
from tests.layers.parity import arrange

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
NODE = "CppNode<positions::"

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: LayerNorm(6), (3, 5, 6)),
    "layer, one row": (lambda: LayerNorm(6), (6,)),
    "layer, no bias": (lambda: LayerNorm(6, bias=False), (9, 6)),
    "layer, whole samples": (lambda: LayerNorm((6, 4, 3)), (2, 6, 4, 3)),
    "rms": (lambda: RMSNorm(6), (3, 5, 6)),
    "rms, nothing learned": (lambda: RMSNorm(6, elementwise_affine=False), (4, 6)),
    "channel": (lambda: ChannelNorm(6), (2, 6, 4, 3)),
    "channel, sequences": (lambda: ChannelNorm(6, elementwise_affine=False), (2, 6, 7)),
    "channel, volumes": (lambda: ChannelNorm(6, bias=False), (2, 6, 2, 3, 2)),
    "channel, one position": (lambda: ChannelNorm(6), (5, 6, 1, 1)),
    "channel, vectors": (lambda: ChannelNorm(6), (5, 6)),
    "channel, several units": (lambda: ChannelNorm(6), (70, 6, 33, 9)),
    "layer, several units": (lambda: LayerNorm(6), (40_000, 6)),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer with random parameters, an input and a gradient."""
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    layer = make().to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=generator)
    x, dy = torch.randn(2, *shape, generator=generator).to(dtype)
    return layer, x, dy


def outcome(layer: nn.Module, x: Tensor, dy: Tensor, backend: str) -> list[Tensor]:
    """The output, and the gradients of whatever learns."""
    x = x.detach().requires_grad_()
    with normlab.use_backend(backend):
        y = layer(x)
    learned = [p for p in layer.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [x, *learned], dy)]


def assert_same(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    found, want = (outcome(layer, x, dy, backend) for backend in ("native_cpu", "numba_cpu"))
    for a, b in zip(found, want, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("layout", ["first", "last", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("name", LAYERS)
def test_same_numbers_as_from_python(name: str, layout: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer, x, dy = made(name, dtype)
        if x.dim() > 1:
            x, dy = arrange(x, layout), arrange(dy, "last")
        assert_same(layer, x, dy)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("kind", "x", "weight"),
    [(LayerNorm, torch.bfloat16, torch.float32), (RMSNorm, torch.float16, torch.float32),
     (RMSNorm, torch.float32, torch.float64), (ChannelNorm, torch.float16, torch.float32)],
)  # fmt: skip
def test_weights_of_another_dtype(kind: Any, x: torch.dtype, weight: torch.dtype) -> None:
    layer = kind(6).to(weight)
    assert_same(layer, torch.randn(5, 6).to(x), torch.randn(5, 6).to(x))


@pytest.mark.usefixtures("built")
def test_a_weight_that_does_not_lie_in_one_piece() -> None:
    layer = LayerNorm(6)
    layer.weight = nn.Parameter(torch.randn(12)[::2])
    assert_same(layer, torch.randn(5, 6), torch.randn(5, 6))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")])
def test_what_is_frozen_has_no_gradient(frozen: tuple[str, ...]) -> None:
    layer, x, dy = made("channel")
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    assert_same(layer, x, dy)
    with normlab.use_backend("native_cpu"):
        layer(x.requires_grad_()).backward(dy)
    assert {name for name, p in layer.named_parameters() if p.grad is None} == set(frozen)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", LAYERS)
def test_autograd_sees_an_ordinary_node(name: str) -> None:
    layer, x, dy = made(name)
    x.requires_grad_()
    seen: list[Tensor] = []
    y = layer(x)
    if name != "layer, whole samples":
        assert NODE in y.grad_fn.name()
        assert not y._is_view()
    y.register_hook(seen.append)
    y.backward(dy, retain_graph=True)
    y.backward(dy)
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(dy)
    y = layer(x)
    y += 1
    y.relu_().backward(dy)
    changed = x.detach().clone().requires_grad_() * 1.0
    y = layer(changed)
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)
    with torch.no_grad():
        assert layer(x).grad_fn is None


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["layer", "channel"])
def test_the_layout_is_kept_and_can_be_changed_in_place(name: str) -> None:
    layer, x, dy = made(name)
    x = arrange(x, "last").requires_grad_()
    y = layer(x * 1)
    assert y.stride() == x.stride() or name == "layer"
    y.mul_(2).backward(dy)
    with normlab.use_backend("numba_cpu"):
        (want,) = torch.autograd.grad(layer(x) * 2, x, dy)
    assert torch.equal(x.grad, want)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["layer", "rms", "channel"])
def test_all_that_is_kept_goes_through_hooks(name: str) -> None:
    layer, x, dy = made(name)
    x.requires_grad_()
    inputs = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x), inputs, dy)
    packed: list[Tensor] = []

    def pack(v: Tensor) -> Tensor:
        packed.append(v)
        return v.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        y = layer(x)
    assert len(packed) == len(inputs) + 1
    packed[-1].fill_(float("nan"))  # the numbers that the kernels keep: the gradient comes from the copy
    for found, expected in zip(torch.autograd.grad(y, inputs, dy), want, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dim", [1, 3])
def test_what_comes_back_as_something_else_never_reaches_a_kernel(dim: int) -> None:
    layer, x, dy = made("layer")
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v[:1] if v.dim() == dim else v):
        y = layer(x.requires_grad_())
    with pytest.raises((ValueError, RuntimeError), match=r"was unpacked with shape|expected the output's shape"):
        y.backward(dy)


# numbers of half precision were read as those of float32, and what lies behind them
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("stored", [torch.float16, torch.float64])
@pytest.mark.parametrize("graph", [False, True])
def test_what_hooks_store_in_another_dtype(stored: torch.dtype, graph: bool) -> None:
    found = []
    for name in ("native_cpu", "numba_cpu"):
        layer, x, dy = made("layer")
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v.to(stored) if v.dim() == 1 else v)
        with hooks, normlab.use_backend(name):
            y = layer(x.requires_grad_())
        found.append(torch.autograd.grad(y, [x, *layer.parameters()], dy, create_graph=graph))
    for a, b in zip(*found, strict=True):
        assert a.dtype is b.dtype is torch.float32
        assert torch.equal(a, b)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["layer", "layer, no bias", "rms", "channel", "channel, vectors"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_further_derivatives(name: str, layout: str) -> None:
    layer, x, _ = made(name, torch.float64)
    x = arrange(x[:2], layout).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grads = torch.autograd.grad(dx.square().sum(), [*layer.parameters()], allow_unused=True)
    with normlab.use_backend("numba_cpu"):
        (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        want = torch.autograd.grad(dx.square().sum(), [*layer.parameters()], allow_unused=True)
    for a, b in zip(grads, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["rms", "channel"])
def test_transforms_and_batches_of_gradients(name: str) -> None:
    layer, x, _ = made(name)
    x = x[:1].requires_grad_()
    basis = torch.eye(x.numel()).view(x.numel(), *x.shape)
    y = layer(x)
    each = torch.stack([torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in basis])
    (together,) = torch.autograd.grad(y, x, basis, is_grads_batched=True)
    torch.testing.assert_close(together, each)
    jacobian = torch.func.jacrev(layer)(x.detach())
    torch.testing.assert_close(jacobian.reshape(each.shape), each)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["layer", "rms", "channel"])
def test_checkpointing(name: str, reentrant: bool) -> None:
    layer, x, dy = made(name)
    x.requires_grad_()
    want = torch.autograd.grad(layer(x).square(), [x, *layer.parameters()], dy)
    checkpoint(lambda v: layer(v).square(), x, use_reentrant=reentrant).backward(dy)
    for found, expected in zip((x, *layer.parameters()), want, strict=True):
        assert torch.equal(found.grad, expected)


# gradients of the first forward pass's numbers with the second one's input
@pytest.mark.usefixtures("native")
def test_checkpointing_of_what_changes_between_the_two_runs() -> None:
    layer, x, dy = made("layer")
    factor = [1.0, 3.0, 3.0]

    def run(v: Tensor) -> Tensor:
        y: Tensor = layer(v * torch.tensor(factor.pop(0)))
        return y

    x.requires_grad_()
    checkpoint(run, x, use_reentrant=False).backward(dy)
    found = x.grad
    x.grad = None
    run(x).backward(dy)
    assert torch.equal(found, x.grad)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["layer", "rms", "channel"])
def test_inference_mode(name: str) -> None:
    layer, x, _ = made(name)
    with torch.no_grad():
        want = layer(x)
    with torch.inference_mode():
        found = copy.deepcopy(layer)(x.clone())
    assert found.is_inference()
    assert torch.equal(found, want)
    with torch.inference_mode():
        inside = x.clone()
    if name == "rms":  # as torch's
        assert torch.equal(layer(inside), want)
    else:
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            layer(inside)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", [(8,), (0,), (1,), (2, 3)])
@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm, ChannelNorm])
def test_a_weight_of_another_length_never_reaches_a_kernel(kind: Any, shape: tuple[int, ...]) -> None:
    layer = kind(6)
    layer.weight = nn.Parameter(torch.ones(shape))
    with pytest.raises((ValueError, RuntimeError), match=r"same shape as normalized_shape|6 channels"):
        layer(torch.randn(2, 6, 6))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", [(0, 6), (2, 6, 0)])
def test_nothing_to_normalize(shape: tuple[int, ...]) -> None:
    layer = ChannelNorm(6)
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(layer.weight.grad, torch.zeros(6))


@pytest.mark.usefixtures("native")
def test_memory_that_is_shared_until_it_is_written() -> None:
    layer, x, dy = made("channel")
    lazy = torch._lazy_clone(x).requires_grad_()
    layer(lazy).backward(dy)
    assert torch._C._is_cow_tensor(lazy.detach())  # what is read stays shared


@pytest.mark.usefixtures("built")
def test_threads() -> None:
    layer, x, dy = made("channel")
    want = outcome(layer, x, dy, "numba_cpu")
    found: list[list[Tensor]] = []

    def work() -> None:
        found.extend(outcome(layer, x, dy, "native_cpu") for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, want, strict=True))


_FORK = """
import os
import torch
from normlab import use_backend
from normlab.layers.norms import ChannelNorm

torch.set_num_threads(2)
layer = ChannelNorm(16)
x = torch.randn(16, 16, 64, 64, requires_grad=True)

def work(backend="native_cpu"):
    with use_backend(backend):
        y = layer(x)
        return y, *torch.autograd.grad(y, [x, layer.weight], x.detach())

want = work()
assert all(map(torch.equal, work("numba_cpu"), want))
child = os.fork()
if child == 0:
    with torch.no_grad(), use_backend("native_cpu"):
        y = layer(x)  # from Python, with helpers of its own
    torch.set_num_threads(1)  # torch's own pool does not survive a fork
    os._exit(0 if torch.equal(y, want[0]) and all(map(torch.equal, work(), want)) else 9)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("child", code, "parent", all(map(torch.equal, work(), want)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system has no fork")
@pytest.mark.usefixtures("built")
def test_several_threads_and_after_a_fork() -> None:
    """A child whose parent has used OpenMP's threads has none of them."""
    command = [sys.executable, "-c", _FORK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "child 0 parent True", done.stdout + done.stderr


@pytest.mark.usefixtures("native")
def test_compiled_autograd_is_refused_in_a_sentence() -> None:
    from torch._dynamo import compiled_autograd

    y = LayerNorm(4)(torch.randn(3, 4, requires_grad=True))
    with (
        compiled_autograd._enable(lambda graph: graph),
        pytest.raises(RuntimeError, match=r"called through C\+\+; call them within .*use_backend\(\"numba_cpu\"\)"),
    ):
        y.sum().backward()
