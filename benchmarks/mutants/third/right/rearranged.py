# ruff: noqa
# mypy: ignore-errors
"""Axes moved by einops, by permute and by flatten."""

import torch
from einops import rearrange, reduce
from torch import nn


class EinopsGroupNorm(nn.Module):
    def __init__(self, groups, channels, eps=1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        h, w = x.shape[2:]
        rows = rearrange(x, "b (g c) h w -> b g (c h w)", g=self.groups)
        mean = reduce(rows, "b g r -> b g 1", "mean")
        var = reduce((rows - mean) ** 2, "b g r -> b g 1", "mean")
        rows = (rows - mean) * torch.rsqrt(var + self.eps)
        y = rearrange(rows, "b g (c h w) -> b (g c) h w", h=h, w=w)
        return y * rearrange(self.gamma, "c -> 1 c 1 1") + rearrange(self.beta, "c -> 1 c 1 1")


def einops_instance_norm(x, gamma, beta, eps=1e-5):
    mean = reduce(x, "b c h w -> b c 1 1", "mean")
    var = reduce((x - mean) ** 2, "b c h w -> b c 1 1", "mean")
    return (x - mean) / torch.sqrt(var + eps) * rearrange(gamma, "c -> c 1 1") + rearrange(beta, "c -> c 1 1")
