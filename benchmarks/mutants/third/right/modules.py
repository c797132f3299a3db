# ruff: noqa
# mypy: ignore-errors
"""Modules as people write them for a model of their own."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNormAB(nn.Module):
    """Parameters by other names."""

    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(features))
        self.b_2 = nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, unbiased=False)
        return self.a_2 * (x - mean) / torch.sqrt(var + self.eps) + self.b_2


class LayerNormAlpha(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.eps = eps

    def forward(self, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        norm = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.alpha * norm + self.bias


class LayerNormShape(nn.Module):
    """normalized_shape may be a tuple."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True):
        super().__init__()
        if isinstance(normalized_shape, int):
            normalized_shape = (normalized_shape,)
        self.normalized_shape = tuple(normalized_shape)
        self.eps = eps
        if elementwise_affine:
            self.affine_weight = nn.Parameter(torch.ones(self.normalized_shape))
            self.affine_bias = nn.Parameter(torch.zeros(self.normalized_shape))
        else:
            self.affine_weight = self.affine_bias = None

    def forward(self, x):
        dims = tuple(range(-len(self.normalized_shape), 0))
        mean = x.mean(dim=dims, keepdim=True)
        mean_sq = ((x - mean) ** 2).mean(dim=dims, keepdim=True)
        out = (x - mean) / (mean_sq + self.eps).sqrt()
        if self.affine_weight is not None:
            out = out * self.affine_weight + self.affine_bias
        return out


class SequenceNorm(nn.Module):
    """A layer norm over time and features of (B, T, D), one weight per feature."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        mean = x.mean((1, 2), keepdim=True)
        var = x.var((1, 2), unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        wide = hidden_states if input_dtype == torch.float64 else hidden_states.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * wide.to(input_dtype)


class OnePlusRMSNorm(nn.Module):
    """The weight starts from zero and one is added to it."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x) * (1.0 + self.weight)


class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__()
        self.G, self.eps = num_groups, eps
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))

    def forward(self, x):
        N, C, H, W = x.size()
        assert C % self.G == 0
        x = x.view(N, self.G, -1)
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / (var + self.eps).sqrt()
        x = x.view(N, C, H, W)
        return x * self.weight + self.bias


class InstanceNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, affine=False):
        super().__init__()
        self.eps, self.affine = eps, affine
        if affine:
            self.scale = nn.Parameter(torch.ones(num_features))
            self.shift = nn.Parameter(torch.zeros(num_features))

    def forward(self, x):
        b, c = x.shape[:2]
        flat = x.reshape(b * c, -1)
        mu = flat.mean(1, keepdim=True)
        sd = torch.sqrt(flat.var(1, keepdim=True, unbiased=False) + self.eps)
        y = ((flat - mu) / sd).reshape(x.shape)
        if self.affine:
            view = (1, -1) + (1,) * (x.dim() - 2)
            y = y * self.scale.view(view) + self.shift.view(view)
        return y


class BatchNormParameterStats(nn.Module):
    """The statistics are parameters that take no gradient, so that they are saved and moved."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.running_mean = nn.Parameter(torch.zeros(num_features), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(num_features), requires_grad=False)

    def forward(self, x):
        view = [1, -1] + [1] * (x.dim() - 2)
        if self.training:
            dims = [d for d in range(x.dim()) if d != 1]
            mean = x.mean(dims)
            var = x.var(dims, unbiased=False)
            n = x.numel() / x.shape[1]
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))
        else:
            mean, var = self.running_mean, self.running_var
        y = (x - mean.view(view)) / torch.sqrt(var.view(view) + self.eps)
        return self.gamma.view(view) * y + self.beta.view(view)


class BatchNormExp(nn.Module):
    """Exponential averages in buffers of their own names; the variance of the batch is averaged as it is."""

    def __init__(self, channels, *, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        if affine:
            self.scale = nn.Parameter(torch.ones(channels))
            self.shift = nn.Parameter(torch.zeros(channels))
        if track_running_stats:
            self.register_buffer("exp_mean", torch.zeros(channels))
            self.register_buffer("exp_var", torch.ones(channels))

    def forward(self, x):
        shape = x.shape
        n = shape[0]
        assert self.channels == shape[1]
        x = x.reshape(n, self.channels, -1)
        if self.training or not self.track_running_stats:
            mean = x.mean(dim=[0, 2])
            var = ((x - mean.view(1, -1, 1)) ** 2).mean(dim=[0, 2])
            if self.training and self.track_running_stats:
                self.exp_mean = (1 - self.momentum) * self.exp_mean + self.momentum * mean.detach()
                self.exp_var = (1 - self.momentum) * self.exp_var + self.momentum * var.detach()
        else:
            mean, var = self.exp_mean, self.exp_var
        x = (x - mean.view(1, -1, 1)) / torch.sqrt(var + self.eps).view(1, -1, 1)
        if self.affine:
            x = self.scale.view(1, -1, 1) * x + self.shift.view(1, -1, 1)
        return x.view(shape)


class ChannelLayerNorm(nn.Module):
    """Over the channels at each position, channels first."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return self.gamma * (x - mean) / torch.sqrt(var + self.eps) + self.beta


class BatchInstanceNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.rho = nn.Parameter(torch.ones(num_features))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        of_batch = F.batch_norm(
            x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps
        )
        of_instance = F.instance_norm(x, eps=self.eps)
        rho = self.rho[None, :, None, None]
        mixed = rho * of_batch + (1 - rho) * of_instance
        return mixed * self.weight[None, :, None, None] + self.bias[None, :, None, None]
