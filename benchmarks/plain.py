"""A comparison of norms as a careful user writes it in plain torch: ResNet-14, crops and flips, SGD with momentum.

python -m benchmarks.plain DATA.npz EPOCHS [channels_last]

Nothing of it is normlab's but the stock compositions that torch has no layer for (`normlab.bench.sides`). It prints a
line for each norm, with the images that its training passes took in a second, and the seconds in all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.bench.sides import stock

NORMS = ("bn", "in", "bin", "ln", "gn", "none", "torch-bn")
BATCH, WIDTHS = 128, (16, 32, 64)
Make = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two convolutions and their norms, beside a shortcut."""

    def __init__(self, channels: int, wide: int, stride: int, norm: Make) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, wide, 3, stride, 1, bias=False), norm(wide), nn.ReLU(True))
        self.second = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), norm(wide))
        straight = channels == wide and stride == 1
        self.shortcut = (
            nn.Identity()
            if straight
            else nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), norm(wide))
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x), inplace=True)


def network(norm: Make, classes: int) -> nn.Module:
    """ResNet-14 for small images."""
    parts: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), norm(WIDTHS[0]), nn.ReLU(True)]
    channels = WIDTHS[0]
    for wide in WIDTHS:
        for stride in (2 if wide > channels else 1, 1):
            parts.append(Block(channels, wide, stride, norm))
            channels = wide
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def norm_of(name: str) -> Make:
    """The stock layer for so many channels."""
    if name == "none":
        return lambda channels: nn.Identity()
    return lambda channels: stock(name.removeprefix("torch-"), channels)


def main(args: list[str] | None = None) -> None:
    """Train one network for each norm, and print its line."""
    args = sys.argv[1:] if args is None else args
    started = time.perf_counter()
    last, epochs = "channels_last" in args, int(args[1])
    with np.load(args[0]) as data:
        images, labels = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"]).long()
    held = len(images) // 10
    mean = images.float().mean((0, 2, 3), keepdim=True)
    spread = images.float().std((0, 2, 3), keepdim=True)
    for name in NORMS:
        torch.manual_seed(0)
        net = network(norm_of(name), int(labels.max()) + 1)
        if last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
        seconds = 0.0
        for _ in range(epochs):
            begun = time.perf_counter()
            net.train()
            for batch in (held + torch.randperm(len(images) - held)).split(BATCH):
                x = prepare(images[batch], mean, spread, last)
                loss = F.cross_entropy(net(x), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                float(loss)
            seconds += time.perf_counter() - begun
            net.eval()
            with torch.no_grad():
                for first in range(0, held, 500):
                    net((images[first : min(first + 500, held)].float() - mean) / spread).argmax(1)
        print(f"{name}: {epochs * (len(images) - held) / seconds:.0f} images/s", flush=True)
    print(f"total: {time.perf_counter() - started:.1f} s")


def prepare(images: Tensor, mean: Tensor, spread: Tensor, last: bool) -> Tensor:
    """A batch standardized, cropped from a frame of zeros and, for half of the images, mirrored."""
    size = images.shape[-1]
    x = F.pad((images.float() - mean) / spread, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2,)).tolist()
    x = x[:, :, top : top + size, left : left + size]
    mirrored = torch.rand(len(x)) < 0.5
    x[mirrored] = x[mirrored].flip(3)
    return x.contiguous(memory_format=torch.channels_last) if last else x


if __name__ == "__main__":
    main()
