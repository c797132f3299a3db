# ruff: noqa
# mypy: ignore-errors
"""Layer objects in NumPy, from small frameworks that people write for themselves."""

import numpy as np


class BatchNorm:
    """A flag on the object says whether it trains."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.eps, self.momentum = eps, momentum
        self.gamma = np.ones(num_features)
        self.beta = np.zeros(num_features)
        self.running_mean = np.zeros(num_features)
        self.running_var = np.ones(num_features)
        self.training = True

    def forward(self, x):
        if self.training:
            mean = x.mean(0)
            var = x.var(0)
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        else:
            mean, var = self.running_mean, self.running_var
        self.inv_std = 1.0 / np.sqrt(var + self.eps)
        self.x_hat = (x - mean) * self.inv_std
        return self.x_hat * self.gamma + self.beta

    def backward(self, grad):
        self.dgamma = (grad * self.x_hat).sum(0)
        self.dbeta = grad.sum(0)
        g = grad * self.gamma
        if not self.training:
            return g * self.inv_std
        n = grad.shape[0]
        return self.inv_std / n * (n * g - g.sum(0) - self.x_hat * (g * self.x_hat).sum(0))


class LayerNorm:
    def __init__(self, dim, eps=1e-5):
        self.eps = eps
        self.gamma = np.ones(dim)
        self.beta = np.zeros(dim)

    def __call__(self, x):
        return self.forward(x)

    def forward(self, x):
        mu = x.mean(axis=-1, keepdims=True)
        self.xc = x - mu
        self.std = np.sqrt((self.xc**2).mean(axis=-1, keepdims=True) + self.eps)
        self.xhat = self.xc / self.std
        return self.xhat * self.gamma + self.beta

    def backward(self, dout):
        axes = tuple(range(dout.ndim - 1))
        self.dgamma = np.sum(dout * self.xhat, axis=axes)
        self.dbeta = np.sum(dout, axis=axes)
        D = dout.shape[-1]
        dxhat = dout * self.gamma
        dstd = -np.sum(dxhat * self.xc, axis=-1, keepdims=True) / self.std**2
        dvar = dstd * 0.5 / self.std
        dxc = dxhat / self.std + 2 / D * dvar * self.xc
        return dxc - dxc.mean(axis=-1, keepdims=True)


class RMSNorm:
    def __init__(self, dim, eps=1e-6):
        self.eps = eps
        self.weight = np.ones(dim)

    def forward(self, x):
        self.x = x
        self.r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return self.weight * (x * self.r)

    def backward(self, dout):
        x, r = self.x, self.r
        self.dweight = (dout * x * r).reshape(-1, x.shape[-1]).sum(0)
        g = dout * self.weight
        return r * g - r**3 * x * (g * x).mean(-1, keepdims=True)
