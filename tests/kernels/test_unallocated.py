"""Tensors whose elements stand nowhere: freed, zeros without memory, and what saved-tensor hooks return instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab import make_norm
from normlab.layers.norms import ChannelNorm, LayerNorm, RMSNorm

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: make_norm("bn", 4),
    "group": lambda: make_norm("gn", 4, groups=2),
    "layer": lambda: LayerNorm(4),
    "rms": lambda: RMSNorm(4),
    "channel": lambda: ChannelNorm(4),
}
SHAPE = (2, 4, 4, 4)
FREED = "The tensor has a non-zero number of elements, but its data is not allocated yet"


@pytest.fixture(params=["numba_cpu", pytest.param("native_cpu", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native_cpu":
        request.getfixturevalue("built")
    with normlab.use_backend(request.param):
        yield request.param


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    return LAYERS[request.param]()


def free(v: Tensor) -> None:
    v.data.untyped_storage().resize_(0)


def zeros(*shape: int) -> Tensor:
    return torch._efficientzerotensor(shape)


# the kernels read at the address null, and the process ended
def test_a_parameter_or_buffer_that_was_freed(layer: nn.Module) -> None:
    tensors = [v for v in layer.state_dict(keep_vars=True).values() if v.dim()]
    for v in tensors:
        kept = v.detach().clone()
        free(v)
        with pytest.raises(RuntimeError, match=FREED):
            layer(torch.randn(SHAPE))
        v.data.untyped_storage().resize_(kept.nbytes)
        v.data.copy_(kept)
    assert layer(torch.randn(SHAPE)).isfinite().all()


# as above; and torch's copy, in another dtype or in one piece
@pytest.mark.parametrize("weight", [torch.ones(4, dtype=torch.float64), torch.ones(8)[::2]])
def test_a_parameter_that_was_freed_and_is_converted(weight: Tensor) -> None:
    for layer in (RMSNorm(4), make_norm("bn", 4).to(weight.dtype)):
        layer.weight = nn.Parameter(torch.ones(8)[::2] if weight.stride() == (2,) else weight.clone())
        free(layer.weight)
        with pytest.raises(RuntimeError, match=FREED):
            layer(torch.randn(SHAPE, dtype=torch.float32 if isinstance(layer, RMSNorm) else weight.dtype))


# as above
def test_running_statistics_that_were_freed() -> None:
    for name in ("running_mean", "running_var"):
        layer = make_norm("bn", 4).eval()
        free(layer.get_buffer(name))
        with pytest.raises(RuntimeError, match=FREED):
            layer(torch.randn(SHAPE))


# as above; and torch's copy of what is not in one piece
@pytest.mark.parametrize(
    "arrange", [lambda v: v, lambda v: v.transpose(2, 3), lambda v: v[:, :, ::2]]
)  # fmt: skip
def test_an_input_that_was_freed(layer: nn.Module, arrange: Callable[[Tensor], Tensor]) -> None:
    x = arrange(torch.randn(SHAPE))
    free(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"{FREED}|out of bounds for storage of size 0"):
        layer(x)
    with pytest.raises(RuntimeError, match=f"{FREED}|out of bounds for storage of size 0"):
        layer(x)


# as above, in the backward pass
@pytest.mark.parametrize("freed", ["x", "dy"])
def test_what_was_freed_before_the_backward_pass(layer: nn.Module, freed: str) -> None:
    x, dy = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    y = layer(x)
    free(x if freed == "x" else dy)
    with pytest.raises(RuntimeError, match=FREED):
        y.backward(dy)


# as above
@pytest.mark.parametrize("backwards", [False, True])
def test_a_residual_that_was_freed(backwards: bool) -> None:
    layer = make_norm("bn", 4, act="relu")
    residual = torch.randn(SHAPE)
    if not backwards:
        free(residual)
        with pytest.raises(RuntimeError, match=FREED):
            layer(torch.randn(SHAPE), residual=residual)
    else:
        y = layer(torch.randn(SHAPE, requires_grad=True), residual=residual)
        free(residual)
        with pytest.raises(RuntimeError, match=FREED):
            y.sum().backward()


# as above, in torch's operations
@pytest.mark.parametrize("freed", ["x", "mask", "residual"])
def test_what_was_freed_with_a_mask(freed: str) -> None:
    given = {"x": torch.randn(2, 4, 6), "mask": torch.ones(2, 6, dtype=torch.bool), "residual": torch.randn(2, 4, 6)}
    free(given[freed])
    with pytest.raises(RuntimeError, match=FREED):
        make_norm("gn", 4, groups=2)(given.pop("x"), **given)


# torch's zeros without memory were read at the address null
def test_zeros_without_memory(layer: nn.Module) -> None:
    plain = torch.zeros(SHAPE)
    assert torch.equal(layer(zeros(*SHAPE)), layer(plain))
    assert torch.equal(layer(zeros(*SHAPE).transpose(2, 3)), layer(plain))
    x = torch.randn(SHAPE, requires_grad=True)
    layer(x).backward(zeros(*SHAPE))
    assert x.grad is not None
    assert not x.grad.any()
    for name, p in layer.named_parameters():
        assert p.grad is not None
        assert not p.grad.any()
        setattr(layer, name, nn.Parameter(zeros(*p.shape)))
    y = layer(x)
    assert not y.any()
    y.sum().backward()


# ones and zeros for a weight and a bias that are None were made on the default device, and read at the address null
@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_the_default_device_does_not_matter(kind: Any) -> None:
    for size in (5, 7):
        x = torch.randn(3, size, requires_grad=True)
        with torch.device("meta"):
            layer = kind(size, elementwise_affine=False)
            y = layer(x)
            y.backward(torch.ones(3, size, device="cpu"))
        assert y.device.type == "cpu"
        assert torch.equal(y, layer(x))


# x on another device was read at the address null; flattened, or of another shape, the errors blamed something else
@pytest.mark.parametrize(
    "other", [lambda v: v.to("meta"), lambda v: v.flatten(), lambda v: v[:1], lambda v: v.view(4, 2, 4, 4)],
    ids=["meta", "flat", "part", "view"],
)  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_input_that_hooks_return_as_something_else(
    layer: nn.Module, other: Callable[[Tensor], Tensor], layout: torch.memory_format
) -> None:
    x = torch.randn(SHAPE).contiguous(memory_format=layout).requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda v: v.detach(), lambda v: other(v.contiguous()) if v.dim() == 4 else v
    )
    with hooks:
        y = layer(x)
    with pytest.raises(RuntimeError, match=r"a saved tensor of shape .* was unpacked with shape"):
        y.sum().backward()


# as above, with the numbers that a layer keeps
@pytest.mark.parametrize(
    ("other", "says"), [(lambda v: v.to("meta"), "was unpacked with shape .* on meta"), (None, FREED)]
)
def test_numbers_that_hooks_do_not_return(layer: nn.Module, other: Any, says: str) -> None:
    def unpacked(v: Tensor) -> Tensor:
        if v.dim() != 1 or len(v) <= 4:
            return v
        if other is not None:
            return other(v)  # type: ignore[no-any-return]
        v = v.clone()
        free(v)
        return v

    with torch.autograd.graph.saved_tensors_hooks(lambda v: v.detach(), unpacked):
        y = layer(torch.randn(SHAPE, requires_grad=True))
    with pytest.raises(RuntimeError, match=says):
        y.sum().backward()


# no memory of torch's own kinds reaches a kernel
@pytest.mark.parametrize("kind", [Tensor.to_sparse, Tensor.to_mkldnn])
def test_other_layouts_of_memory_raise_errors(layer: nn.Module, kind: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
        layer(kind(torch.randn(SHAPE)))
    y = layer(torch.randn(SHAPE, requires_grad=True))
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
        y.backward(kind(torch.randn(SHAPE)))
