"""A small residual network for images of 32 pixels, of 117,000 parameters, which trains quickly on a CPU.

`network(norm, num_classes, in_channels)`: seven convolutions, each a norm behind it, in two stages of a step down and a
residual block, as in the networks of the DAWNBench competition (Page 2018, "How to train your ResNet").
"""

from __future__ import annotations

from collections.abc import Callable

from safetensors.torch import load_file
from torch import Tensor, nn

from normlab.data import Dataset
from normlab.models import build_model

Constructor = Callable[[int], nn.Module]
WIDTH = 16


def network(norm: Constructor, num_classes: int, in_channels: int) -> nn.Module:
    """The network, with `norm(channels)` behind every convolution; inputs are (N, C, H, W)."""
    return nn.Sequential(
        _layer(norm, in_channels, WIDTH),
        _layer(norm, WIDTH, 2 * WIDTH, pool=True),
        _Residual(norm, 2 * WIDTH),
        _layer(norm, 2 * WIDTH, 4 * WIDTH, pool=True),
        _Residual(norm, 4 * WIDTH),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * WIDTH, num_classes),
    )


def pretrained(model: str, weights: str, dataset: Dataset) -> nn.Module:
    """The network of `benchmarks.convert.pretrain`'s file, with batch norm, for images as the data set's."""
    net = build_model(
        model, "bn", num_classes=dataset.num_classes, in_channels=dataset.channels, image_size=dataset.size
    )
    net.load_state_dict(load_file(weights))  # half precision is widened
    return net.eval()


def _layer(norm: Constructor, inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution, *pooling, norm(outputs), nn.ReLU())


class _Residual(nn.Module):
    """x plus two layers of x."""

    def __init__(self, norm: Constructor, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_layer(norm, channels, channels), _layer(norm, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y
