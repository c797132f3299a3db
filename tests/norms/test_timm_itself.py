"""Members beside timm's layers of the same papers, on timm's own checkpoints: the same names, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import normlab

pytest.importorskip("torchvision", reason="timm imports it")
timm = pytest.importorskip("timm.layers", reason="members are held to timm where timm is installed")
grn = pytest.importorskip("timm.layers.grn")
CHANNELS = 16


class Last(nn.Module):
    """A layer of timm's whose channels are last, on (N, C, H, W)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x.movedim(1, -1)).movedim(-1, 1)
        return y


THEIRS: dict[str, Any] = {
    "frn-tlu": lambda: timm.FilterResponseNormTlu2d(CHANNELS),
    "evonorm-b0:eps=0.001": lambda: timm.EvoNorm2dB0(CHANNELS),
    "evonorm-s0:groups=4": lambda: timm.EvoNorm2dS0(CHANNELS, groups=4),
    "grn": lambda: Last(grn.GlobalResponseNorm(CHANNELS)),
    "channel-ln": lambda: timm.LayerNorm2d(CHANNELS),
    "layerscale": lambda: Last(timm.LayerScale(CHANNELS)),
    "frozen": lambda: timm.FrozenBatchNormAct2d(CHANNELS, apply_act=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", THEIRS)
def test_a_checkpoint_of_timm(spec: str, training: bool) -> None:
    theirs = THEIRS[spec]().train(training)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*theirs.parameters(), *theirs.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.3)
    ours = normlab.make_norm(spec, CHANNELS).train(training)
    inner = theirs.layer if isinstance(theirs, Last) else theirs
    ours.load_state_dict(inner.state_dict())
    x = torch.randn(4, CHANNELS, 5, 6, generator=generator, requires_grad=True)
    dy = torch.randn(x.shape, generator=generator)
    found, wanted = ours(x), theirs(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y, x, dy)[0] for y in (found, wanted)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
    for name, value in ours.state_dict().items():
        if name in inner.state_dict():
            torch.testing.assert_close(value, inner.state_dict()[name].reshape(value.shape), rtol=1e-4, atol=1e-5)
