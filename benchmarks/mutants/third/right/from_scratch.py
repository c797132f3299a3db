# ruff: noqa
# mypy: ignore-errors
"""Layer objects of NumPy books and courses: train_flg, dictionaries of parameters, momentum written either way."""

import numpy as np


class BatchNormalization:
    def __init__(self, gamma, beta, momentum=0.9, running_mean=None, running_var=None):
        self.gamma = gamma
        self.beta = beta
        self.momentum = momentum
        self.input_shape = None
        self.running_mean = running_mean
        self.running_var = running_var
        self.batch_size = None
        self.xc = None
        self.std = None
        self.dgamma = None
        self.dbeta = None

    def forward(self, x, train_flg=True):
        self.input_shape = x.shape
        if x.ndim != 2:
            x = x.reshape(x.shape[0], -1)
        out = self._forward(x, train_flg)
        return out.reshape(*self.input_shape)

    def _forward(self, x, train_flg):
        if self.running_mean is None:
            self.running_mean = np.zeros(x.shape[1])
            self.running_var = np.zeros(x.shape[1])
        if train_flg:
            mu = x.mean(axis=0)
            xc = x - mu
            var = np.mean(xc**2, axis=0)
            std = np.sqrt(var + 1e-6)
            xn = xc / std
            self.batch_size = x.shape[0]
            self.xc, self.xn, self.std = xc, xn, std
            self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mu
            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        else:
            xn = (x - self.running_mean) / np.sqrt(self.running_var + 1e-6)
        return self.gamma * xn + self.beta

    def backward(self, dout):
        if dout.ndim != 2:
            dout = dout.reshape(dout.shape[0], -1)
        dbeta = dout.sum(axis=0)
        dgamma = np.sum(self.xn * dout, axis=0)
        dxn = self.gamma * dout
        dxc = dxn / self.std
        dstd = -np.sum((dxn * self.xc) / (self.std * self.std), axis=0)
        dvar = 0.5 * dstd / self.std
        dxc += (2.0 / self.batch_size) * self.xc * dvar
        dmu = np.sum(dxc, axis=0)
        dx = dxc - dmu / self.batch_size
        self.dgamma = dgamma
        self.dbeta = dbeta
        return dx.reshape(*self.input_shape)


class BatchNormTorchMomentum:
    """momentum=0.1 weighs the new batch, as torch means it."""

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        self.eps, self.momentum = eps, momentum
        self.gamma, self.beta = np.ones(dim), np.zeros(dim)
        self.running_mean, self.running_var = np.zeros(dim), np.ones(dim)
        self.training = True

    def forward(self, x):
        if self.training:
            m, v = x.mean(0), x.var(0)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * m
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * v
        else:
            m, v = self.running_mean, self.running_var
        self.inv = 1.0 / np.sqrt(v + self.eps)
        self.xhat = (x - m) * self.inv
        return self.xhat * self.gamma + self.beta

    def backward(self, grad):
        self.grad_gamma = (grad * self.xhat).sum(0)
        self.grad_beta = grad.sum(0)
        g = grad * self.gamma
        if not self.training:
            return g * self.inv
        n = grad.shape[0]
        return self.inv / n * (n * g - g.sum(0) - self.xhat * (g * self.xhat).sum(0))


class LayerNormDict:
    """Parameters and gradients in dictionaries."""

    def __init__(self, n_features, eps=1e-5):
        self.eps = eps
        self.params = {"gamma": np.ones((1, n_features)), "beta": np.zeros((1, n_features))}
        self.grads = {}

    def forward(self, x):
        self.mu = x.mean(axis=-1, keepdims=True)
        self.var = x.var(axis=-1, keepdims=True)
        self.inv_std = (self.var + self.eps) ** -0.5
        self.z = (x - self.mu) * self.inv_std
        return self.params["gamma"] * self.z + self.params["beta"]

    def backward(self, dout):
        self.grads["gamma"] = (dout * self.z).sum(axis=0, keepdims=True)
        self.grads["beta"] = dout.sum(axis=0, keepdims=True)
        dz = dout * self.params["gamma"]
        d = dout.shape[-1]
        return self.inv_std / d * (d * dz - dz.sum(-1, keepdims=True) - self.z * (dz * self.z).sum(-1, keepdims=True))


class BatchNorm2D:
    """Images, channels first; statistics keep their ones."""

    def __init__(self, num_channels, momentum=0.9, epsilon=1e-5):
        self.weight = np.ones((1, num_channels, 1, 1))
        self.bias = np.zeros((1, num_channels, 1, 1))
        self.mean_running = np.zeros((1, num_channels, 1, 1))
        self.var_running = np.ones((1, num_channels, 1, 1))
        self.momentum, self.epsilon = momentum, epsilon

    def forward(self, x, training=True):
        self.training = training
        if training:
            mean = x.mean(axis=(0, 2, 3), keepdims=True)
            var = x.var(axis=(0, 2, 3), keepdims=True)
            self.mean_running = self.momentum * self.mean_running + (1 - self.momentum) * mean
            self.var_running = self.momentum * self.var_running + (1 - self.momentum) * var
        else:
            mean, var = self.mean_running, self.var_running
        self.std = np.sqrt(var + self.epsilon)
        self.x_hat = (x - mean) / self.std
        return self.weight * self.x_hat + self.bias

    def backward(self, dy):
        axes = (0, 2, 3)
        self.dbias = dy.sum(axis=axes, keepdims=True)
        self.dweight = (dy * self.x_hat).sum(axis=axes, keepdims=True)
        dx_hat = dy * self.weight
        if not self.training:
            return dx_hat / self.std
        m = dy.size // dy.shape[1]
        s1 = dx_hat.sum(axis=axes, keepdims=True)
        s2 = (dx_hat * self.x_hat).sum(axis=axes, keepdims=True)
        return (dx_hat - s1 / m - self.x_hat * s2 / m) / self.std


class InstanceNormLayer:
    def __init__(self, channels, eps=1e-5):
        self.g, self.b, self.eps = np.ones(channels), np.zeros(channels), eps

    def forward(self, x):
        axes = tuple(range(2, x.ndim))
        self.shape = (1, -1) + (1,) * len(axes)
        self.m = x.mean(axis=axes, keepdims=True)
        self.s = np.sqrt(x.var(axis=axes, keepdims=True) + self.eps)
        self.h = (x - self.m) / self.s
        return self.g.reshape(self.shape) * self.h + self.b.reshape(self.shape)

    def backward(self, d):
        axes = tuple(range(2, d.ndim))
        every = (0,) + axes
        self.dg = (d * self.h).sum(axis=every)
        self.db = d.sum(axis=every)
        d = d * self.g.reshape(self.shape)
        return (d - d.mean(axis=axes, keepdims=True) - self.h * (d * self.h).mean(axis=axes, keepdims=True)) / self.s
