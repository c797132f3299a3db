"""Masked norms called plainly, and under the transforms of `torch.func`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.layers import masked
from tests.layers.test_operators import layer_of

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
