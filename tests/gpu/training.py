"""Training steps of a residual network with our norms, on whatever device; what the tests of this folder repeat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.models.residual import build_model


def network(norm: str, device: str, model: str = "resnet14", size: int = 32) -> nn.Module:
    """A network with weights that depend on nothing but the arguments."""
    net = build_model(model, norm, num_classes=10, in_channels=3, image_size=(size, size), seed=0)
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def batch(count: int, device: str, size: int = 32) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


def make_step(net: nn.Module, images: Tensor, labels: Tensor, autocast: bool = False) -> Callable[[], Tensor]:
    """Forward, loss, backward and SGD with momentum as a function that answers the loss, and never looks at it."""
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def state(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and running statistics."""
    return {k: v.clone() for k, v in net.state_dict().items()}
