# mypy: ignore-errors
"""Batch-instance normalization as a torch Module with a backward pass written by hand."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, rho, eps, training):
        instance_mean = x.mean((2, 3), keepdim=True)
        instance_centred = x - instance_mean
        instance_var = (instance_centred * instance_centred).mean((2, 3), keepdim=True)
        instance_std = torch.sqrt(instance_var + eps)
        instance = instance_centred / instance_std
        batch_std = torch.sqrt(var + eps)
        batch = (x - mean) / batch_std
        xhat = rho * batch + (1 - rho) * instance
        ctx.save_for_backward(batch, batch_std, instance, instance_std, xhat, weight, rho)
        ctx.training = training
        return weight * xhat + bias

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        batch, batch_std, instance, instance_std, xhat, weight, rho = ctx.saved_tensors
        dbias = dy.sum((0, 2, 3), keepdim=True)
        dweight = (dy * xhat).sum((0, 2, 3), keepdim=True)
        g = dy * weight
        drho = (g * (batch - instance)).sum((0, 2, 3), keepdim=True)
        gb = g * rho
        gi = g * (1 - rho)
        if ctx.training:
            batch_mean_term = gb.mean((0, 2, 3), keepdim=True)
            batch_var_term = batch * (gb * batch).mean((0, 2, 3), keepdim=True)
            dx = (gb - batch_mean_term - batch_var_term) / batch_std
        else:
            dx = gb / batch_std
        instance_mean_term = gi.mean((2, 3), keepdim=True)
        instance_var_term = instance * (gi * instance).mean((2, 3), keepdim=True)
        dx = dx + (gi - instance_mean_term - instance_var_term) / instance_std
        return dx, None, None, dweight, dbias, drho, None, None


class BatchInstanceNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.rho = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        if x.ndim != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected (N, {self.num_features}, H, W), got {tuple(x.shape)}")
        n = x.numel() // x.shape[1]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        shape = (1, -1, 1, 1)
        if self.training:
            if n < 2:
                raise ValueError("expected more than one value per channel in training")
            mean = wide.mean((0, 2, 3))
            centred = wide - mean.reshape(shape)
            var = (centred * centred).mean((0, 2, 3))
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))
        else:
            mean, var = self.running_mean, self.running_var
        weight, bias, rho = (p.to(wide.dtype).reshape(shape) for p in (self.weight, self.bias, self.rho))
        mean, var = mean.detach().reshape(shape), var.detach().reshape(shape)
        y = _Mix.apply(wide, mean, var, weight, bias, rho, self.eps, self.training)
        return y.to(x.dtype)
