"""Masked norms called plainly: under the transforms of `torch.func`, and the running statistics that they move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import normlab
from normlab.layers import masked
from tests.layers.test_operators import layer_of

INSTANCES: dict[str, Any] = {"track_running_stats": True}
SIZES = {3: (7,), 4: (3, 4), 5: (2, 3, 4)}


def ordered(x: Tensor, order: str) -> Tensor:
    """The same numbers in memory of this order: of dense ones, or with gaps."""
    if order == "first":
        return x.contiguous()
    if order == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    wide = x.repeat_interleave(2, -1)
    return wide[..., ::2]


# Bug: an input in another memory order than torch's usual one was asked for what `vmap` refuses to say.
@pytest.mark.parametrize("order", ["first", "last", "strided"])
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("norm", ["gn:groups=2", "ln", "bn"])
def test_each_sample_by_itself(norm: str, rank: int, order: str) -> None:
    generator = torch.Generator().manual_seed(rank)
    x = ordered(torch.randn(6, 8, *SIZES[rank], generator=generator), order)
    mask = torch.rand(6, *SIZES[rank], generator=generator) > 0.3
    layer = layer_of(norm, training=norm != "bn")
    params = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, mask: Tensor) -> Tensor:
        total: Tensor = torch.func.functional_call(layer, params, (x,), {"mask": mask}).sin().sum()
        return total

    pairs, masks = x.unflatten(0, (3, 2)), mask.unflatten(0, (3, 2))
    y = torch.func.vmap(lambda x, mask: layer(x, mask=mask))(pairs, masks)
    torch.testing.assert_close(y.flatten(0, 1), layer(x, mask=mask))
    found = torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, 0, 0))(params, pairs, masks)
    for i in range(3):
        want = torch.func.grad(loss, (0, 1))(params, pairs[i], masks[i])
        torch.testing.assert_close([v[i] for v in (*found[0].values(), found[1])], [*want[0].values(), want[1]])


# Bug: a mask that is mapped over was read, which `vmap` refuses.
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("norm", ["gn", "bn:track_running_stats=False"])
def test_a_mask_that_is_mapped_over(norm: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, 8, 5, generator=torch.Generator().manual_seed(4))
    masks = (torch.arange(5) < torch.tensor([[5, 2], [3, 4], [1, 5]])[..., None]).to(dtype)
    layer = layer_of(norm)
    y = torch.func.vmap(lambda x, mask: layer(x, mask=mask))(x, masks)
    torch.testing.assert_close(y, torch.stack([layer(x[i], mask=masks[i]) for i in range(3)]))


# Bug: torch's bare error, where the same layer without a mask says what helps.
@pytest.mark.parametrize("mapped", [0, None])
@pytest.mark.parametrize("norm", ["bn", "in"])
def test_statistics_that_a_transform_cannot_move(norm: str, mapped: int | None) -> None:
    layer, x = layer_of(norm, **INSTANCES), torch.randn(3, 2, 8, 5)
    mask = torch.ones(2, 5) if mapped is None else torch.ones(3, 2, 5)
    with pytest.raises(RuntimeError, match=r"cannot be updated within this transform .*call \.eval\(\)"):
        torch.func.vmap(lambda x, mask: layer(x, mask=mask), (0, mapped))(x, mask)


class Operations(TorchDispatchMode):
    """Writes down which operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


# Bug: a whole copy of an input with gaps was made and dropped, to learn its memory order.
def test_the_memory_order_is_found_without_a_copy() -> None:
    x = ordered(torch.randn(2, 8, 3, 4), "strided")
    with Operations() as seen:
        y = masked.dense_as(x, torch.zeros(2, 8, 3, 4))
    assert y.is_contiguous()
    assert not {"aten.clone", "aten.copy_"} & {*seen.names}


# --- running statistics that average over instances ------------------------------------------------------------------


def compiled(layer: nn.Module) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


def as_called(layer: nn.Module) -> Callable[..., Tensor]:
    return layer


# samples of all positions, of some, of one, and of none
LENGTHS = torch.tensor([12, 7, 1, 0, 2])
RAGGED = torch.arange(12).reshape(3, 4) < LENGTHS[:, None, None]


# Bug: with a mask the running statistics of instances stayed at 0 and 1, which evaluation then took.
@pytest.mark.parametrize("call", [as_called, compiled])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("norm", ["in", "ibn-b"])
def test_instances_where_a_mask_keeps_everything(
    norm: str, momentum: float | None, call: Callable[[nn.Module], Callable[..., Tensor]]
) -> None:
    layer = layer_of(norm, momentum=momentum, **INSTANCES)
    stock = nn.InstanceNorm2d(8, affine=True, **{**INSTANCES, "momentum": momentum})
    stock.load_state_dict(layer.state_dict())
    run = call(layer)
    for seed in range(2):
        x = 3 + 2 * torch.randn(5, 8, 3, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(run(x, mask=torch.ones(5, 3, 4)), stock(x))
        torch.testing.assert_close(layer.state_dict(), stock.state_dict())
    torch.testing.assert_close(layer.eval()(x, mask=torch.ones(5, 3, 4)), stock.eval()(x))


@pytest.mark.parametrize("call", [as_called, compiled])
def test_instances_that_a_mask_cuts_short(call: Callable[[nn.Module], Callable[..., Tensor]]) -> None:
    """As the mean over the samples, each cut to what it has; one value has a variance of zero."""
    x = 3 + 2 * torch.randn(5, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = normlab.make_norm("in", 8, momentum=0.25, **INSTANCES)
    cut = [x[i].flatten(1)[:, :length] for i, length in enumerate(LENGTHS) if length]
    mean = torch.stack([v.mean(1) for v in cut]).mean(0)
    var = torch.stack([v.var(1) if v.shape[1] > 1 else torch.zeros(8) for v in cut]).mean(0)
    call(layer)(torch.where(RAGGED[:, None], x, torch.nan), mask=RAGGED)
    torch.testing.assert_close(layer.running_mean, 0.25 * mean)
    torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * var)


def test_one_instance_moves_them_as_torchs_layer_does_without_the_padding() -> None:
    x = torch.randn(1, 8, 7, generator=torch.Generator().manual_seed(1))
    layer, stock = normlab.make_norm("in", 8, **INSTANCES), nn.InstanceNorm1d(8, affine=True, **INSTANCES)
    y = layer(x, mask=torch.arange(7)[None] < 4)
    torch.testing.assert_close(y[..., :4], stock(x[..., :4]))
    torch.testing.assert_close(layer.state_dict(), stock.state_dict())


def test_instances_of_which_a_mask_keeps_nothing_move_nothing() -> None:
    layer = layer_of("in", **INSTANCES)
    before = copy.deepcopy(layer.state_dict())
    for run in (layer, compiled(layer)):
        run(torch.randn(2, 8, 3, 4), mask=torch.zeros(2, 3, 4))
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_instances_once_statistics_are_no_longer_tracked() -> None:
    """As torch's layer: evaluation then normalizes by the instances, and moves what buffers there are."""
    layer = layer_of("in", training=False, **INSTANCES)
    stock = nn.InstanceNorm2d(8, affine=True, **INSTANCES).eval()
    stock.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(2))
    for each in (layer, stock):
        each.track_running_stats = False  # type: ignore[assignment]
    torch.testing.assert_close(layer(x, mask=torch.ones(2, 3, 4)), stock(x))
    torch.testing.assert_close(layer.state_dict(), stock.state_dict())


def test_instances_of_several_layers_at_once() -> None:
    """An ensemble, each of whose layers moves its own running statistics."""
    stack = [layer_of("in", **INSTANCES) for _ in range(2)]
    stack[1].running_mean.add_(1)  # type: ignore[operator]
    x = torch.randn(5, 8, 3, 4, generator=torch.Generator().manual_seed(3))
    params, buffers = torch.func.stack_module_state(stack)

    def apply(params: Any, buffers: Any) -> Tensor:
        y: Tensor = torch.func.functional_call(stack[0], (params, buffers), (x,), {"mask": RAGGED})
        return y

    y = torch.func.vmap(apply)(params, buffers)
    for i, layer in enumerate(stack):
        torch.testing.assert_close(y[i], layer(x, mask=RAGGED))
        torch.testing.assert_close({k: v[i] for k, v in buffers.items()}, dict(layer.named_buffers()))
