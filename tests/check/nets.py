"""Three sound networks in plain torch, for the lint's false alarms: a ResNet-50, a ViT, a U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Encoder(nn.Module):
    """A transformer block, norm first."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=drop, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(drop), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.drop(self.attention(h, h, h, need_weights=False)[0])
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    def __init__(self, side: int = 224, patch: int = 16, width: int = 192, depth: int = 4, drop: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.drop = nn.Dropout(drop)
        self.blocks = nn.Sequential(*(Encoder(width, 3, drop) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(self.drop(x)))[:, 0])


def vit() -> tuple[nn.Module, torch.optim.Optimizer]:
    """With the optimizer that it is trained with: no decay on what has one dimension."""
    model = ViT()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=1e-3)


class UNet(nn.Module):
    """Three levels; group norm, since its batches are small."""

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 32, norm: str = "group") -> None:
        super().__init__()

        def double(a: int, b: int) -> nn.Module:
            def one(c: int) -> nn.Module:
                return nn.GroupNorm(8, c) if norm == "group" else nn.BatchNorm2d(c)

            return nn.Sequential(
                *(nn.Conv2d(a, b, 3, padding=1, bias=norm == "group"), one(b), nn.ReLU()),
                *(nn.Conv2d(b, b, 3, padding=1, bias=norm == "group"), one(b), nn.ReLU()),
            )

        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([channels, *sizes], sizes, strict=False))
        self.bottom = double(4 * width, 8 * width)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * s, s, 2, 2) for s in reversed(sizes))
        self.join = nn.ModuleList(double(2 * s, s) for s in reversed(sizes))
        self.drop, self.head = nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for stage in self.down:
            x = stage(x)
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(self.drop(x))


def unet() -> nn.Module:
    return UNet()
