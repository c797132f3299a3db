"""The two sides of a row: our layer, and torch's functions in a row, as its users write them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.bench.work import POSITION_NORMS, Work
from normlab.errors import UsageError
from normlab.layers._torch import InstanceNormBase
from normlab.layers.norms import ChannelNorm, LayerNorm, RMSNorm, make_norm
from normlab.norms.family import parse, resolve_options

_ACT: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


class BatchInstance(nn.Module):
    """Batch-instance norm as its authors compose it from torch's functions (arXiv:1805.07925)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.gate = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        batch = F.batch_norm(x, *running, self.weight * self.gate, self.bias, self.training)
        return batch + F.instance_norm(x, weight=self.weight * (1 - self.gate))


class Permuted(nn.LayerNorm):
    """ConvNeXt's layer norm over the channels, composed as it is there (arXiv:2201.03545)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Composed(nn.Module):
    """act(layer(x) + residual), written out."""

    def __init__(self, layer: nn.Module, act: str | None) -> None:
        super().__init__()
        self.layer, self.act = layer, _ACT[act]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return self.act(y if residual is None else y + residual)


def stock(norm: str, channels: int, rank: int = 4) -> nn.Module:
    """Torch's layer of the same function, for inputs (N, C, *) of this many dimensions."""
    if norm in POSITION_NORMS:
        if norm == "channelnorm":
            return Permuted(channels, eps=1e-6)
        return (nn.RMSNorm if norm == "rmsnorm" else nn.LayerNorm)(channels)
    entry, given = parse(norm)
    if entry.stock is None:
        raise UsageError(f"norm {norm!r}: torch has no such layer to set beside ours")
    module, _, name = entry.stock.format(d=max(1, rank - 2)).partition(":")
    layer: Callable[..., nn.Module] = getattr(import_module(module), name)
    if layer is nn.GroupNorm:
        return layer(resolve_options(entry, channels, given).get("groups", 1), channels)
    return layer(channels, affine=True) if issubclass(layer, InstanceNormBase) else layer(channels)  # type: ignore[arg-type]


def our_layer(work: Work) -> nn.Module:
    """Our layer, with the activation and the residual inside; of statistics per position there is no such form."""
    if work.norm in POSITION_NORMS:
        kinds: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "channelnorm": ChannelNorm}
        return Composed(kinds[work.norm](work.channels), work.act)
    if work.act is None:
        return make_norm(work.norm, work.channels)
    return make_norm(work.norm, work.channels, act=work.act)


def stock_layer(work: Work) -> nn.Module:
    """Torch's layer followed by the addition and the activation."""
    try:
        return Composed(stock(work.norm, work.channels, len(work.shape)), work.act)
    except ValueError as error:  # the groups do not divide the channels
        raise UsageError(f"norm {work.norm!r} on {work.channels} channels: {error}") from None


def compiled(layer: nn.Module) -> Any:
    """The layer under torch.compile, for fixed shapes."""
    return torch.compile(layer, dynamic=False)


def make_step(layer: Any, work: Work, device: str) -> Callable[[], None]:
    """A call of forward and backward with all gradients, on the same random tensors for every side."""
    x, residual, dy = (arrange(random_tensor(work, seed, device), work.layout) for seed in range(3))
    inputs = [x, residual] if work.residual else [x]
    for tensor in inputs:
        tensor.requires_grad_()
    wanted = [*inputs, *layer.parameters()]

    def step() -> None:
        torch.autograd.grad(layer(*inputs), wanted, dy)

    return step


def random_tensor(work: Work, seed: int, device: str) -> Tensor:
    """Standard normal values of the row's shape and dtype."""
    place = device if device.startswith("cuda") else "cpu"  # where making them is quicker than bringing them
    generator = torch.Generator(place).manual_seed(seed)
    return torch.randn(work.shape, generator=generator, device=place).to(device, getattr(torch, work.dtype))


def arrange(x: Tensor, layout: str) -> Tensor:
    """The tensor in this memory layout."""
    return x.contiguous(memory_format=_memory_format(x.dim(), layout))


def arrange_model(model: nn.Module, rank: int, layout: str) -> nn.Module:
    """A model for inputs of this many dimensions, its weights in this memory layout; channels-first stays as it is."""
    last = _memory_format(rank, layout)
    return model if last is torch.contiguous_format else model.to(memory_format=last)  # type: ignore[call-overload]


def _memory_format(rank: int, layout: str) -> torch.memory_format:
    if layout == "channels_first" or rank not in (4, 5):
        return torch.contiguous_format
    return torch.channels_last if rank == 4 else torch.channels_last_3d
