# mypy: ignore-errors
"""Instance normalization as a torch Module, differentiated by torch."""

import torch
from torch import nn


class InstanceNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x):
        if x.ndim < 3 or x.shape[1] != self.num_features:
            raise ValueError(f"expected (N, {self.num_features}, *), got {tuple(x.shape)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        axes = tuple(range(2, x.ndim))
        mean = wide.mean(axes, keepdim=True)
        centred = wide - mean
        var = (centred * centred).mean(axes, keepdim=True)
        xhat = centred / torch.sqrt(var + self.eps)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        y = self.weight.reshape(shape) * xhat + self.bias.reshape(shape)
        return y.to(x.dtype)
