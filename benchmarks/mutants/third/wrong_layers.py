# ruff: noqa: E501 (the patches quote code)
"""The wrong layers of the third set: one or two faults each, and what a knowing reader would say of them.

They were written from lists of slips that people make, without a look at the library of wrong formulas; the words
of the causes are the writer's own, and `words.py` says which of the kit's diagnoses mean the same.
"""

from __future__ import annotations

from benchmarks.mutants.third.right_layers import BY_NAME
from benchmarks.mutants.written import Wrong, wrong_of

wrong = wrong_of(BY_NAME)

D2L_F, D2L_M = "grad_enabled:batch_norm", "grad_enabled:BatchNorm"
BN = "assignment:batchnorm_forward,batchnorm_backward"
BN_ALT = "assignment:batchnorm_forward,batchnorm_backward_alt"
LN = "assignment:layernorm_forward,layernorm_backward"
SBN = "assignment:spatial_batchnorm_forward,spatial_batchnorm_backward"
SGN = "assignment:spatial_groupnorm_forward,spatial_groupnorm_backward"
BOOK, BN2D = "from_scratch:BatchNormalization", "from_scratch:BatchNorm2D"
OBJ_IN, OBJ_LN, OBJ_BN = (
    "from_scratch:InstanceNormLayer",
    "from_scratch:LayerNormDict",
    "from_scratch:BatchNormTorchMomentum",
)
AB, ALPHA, SHAPE, SEQ = (f"modules:{n}" for n in ("LayerNormAB", "LayerNormAlpha", "LayerNormShape", "SequenceNorm"))
RMS, ONE, GN, IN = (f"modules:{n}" for n in ("RMSNorm", "OnePlusRMSNorm", "GroupNorm", "InstanceNorm"))
STATS, EXP, CHANNEL, BIN = (
    f"modules:{n}" for n in ("BatchNormParameterStats", "BatchNormExp", "ChannelLayerNorm", "BatchInstanceNorm")
)
NHWC_BN, NHWC_IN, NHWC_GN = (f"channels_last:{n}_norm_nhwc" for n in ("batch", "instance", "group"))
LN_F, RMS_F, RMS_PAIR = (
    "channels_last:layer_norm",
    "channels_last:rms_norm",
    "channels_last:rmsnorm_forward,rmsnorm_backward",
)
LN_PAIR, BN_F, GN_F, IN_F = (
    "functions:layernorm_fwd,layernorm_bwd",
    "functions:batch_norm",
    "functions:GroupNorm",
    "functions:instance_norm",
)
BN_PAIR, CALLED, STATIC = "functions:bn_forward,bn_backward", "functions:BatchNorm1d", "functions:LayerNorm"
FLAT, NORM2, LN2D = "permuted:BatchNormFlat", "permuted:RootMeanSquare", "permuted:LayerNorm2d"

ONE_FAULT: tuple[Wrong, ...] = (
    wrong("d2l-std-not-var", D2L_F, "eps outside the root", "X_hat = (X - mean) / torch.sqrt(var + eps)", "X_hat = (X - mean) / (torch.sqrt(var) + eps)"),
    wrong("d2l-eval-forgets-eps", D2L_F, "eps missing", "X_hat = (X - moving_mean) / torch.sqrt(moving_var + eps)", "X_hat = (X - moving_mean) / torch.sqrt(moving_var)"),
    wrong("d2l-no-root", D2L_M, "no square root", "X_hat = (X - mean) / torch.sqrt(var + eps)", "X_hat = (X - mean) / (var + eps)"),
    wrong("d2l-mean-of-batch-only", D2L_M, "forgotten axis", "mean = X.mean(dim=(0, 2, 3), keepdim=True)", "mean = X.mean(dim=0, keepdim=True)", "var = ((X - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)", "var = ((X - mean) ** 2).mean(dim=0, keepdim=True)", "X_hat = (X - mean) / torch.sqrt(var + eps)\n", "X_hat = (X - mean) / torch.sqrt(var + eps)\n        mean, var = mean.mean((2, 3), keepdim=True) if X.dim() == 4 else mean, var.mean((2, 3), keepdim=True) if X.dim() == 4 else var\n"),
    wrong("assignment-mean-not-divided", BN, "mean term of dx", "dx = dxc + dmu / N", "dx = dxc + dmu"),
    wrong("assignment-var-not-divided", BN, "variance term of dx", "dxc += 2.0 * xc * dvar / N", "dxc += 2.0 * xc * dvar"),
    wrong("assignment-dmu-forgotten", BN, "mean term of dx", "dx = dxc + dmu / N", "dx = dxc"),
    wrong("assignment-half-forgotten", BN, "variance term of dx", "dvar = 0.5 * dstd / std", "dvar = dstd / std"),
    wrong("assignment-gamma-forgotten", BN, "dx without gamma", "dxn = dout * gamma\n    dxc", "dxn = dout\n    dxc"),
    wrong("assignment-dgamma-of-x", BN, "dgamma of something else", "dgamma = np.sum(dout * xn, axis=0)", "dgamma = np.sum(dout * xc, axis=0)"),
    wrong("assignment-momentum", BN, "momentum reversed", "running_mean = momentum * running_mean + (1 - momentum) * mu\n        running_var = momentum * running_var + (1 - momentum) * var", "running_mean = (1 - momentum) * running_mean + momentum * mu\n        running_var = (1 - momentum) * running_var + momentum * var"),
    wrong("assignment-std-averaged", BN, "averages the standard deviation", "running_var = momentum * running_var + (1 - momentum) * var", "running_var = momentum * running_var + (1 - momentum) * std"),
    wrong("assignment-test-batch", BN, "batch statistics in evaluation", "out = gamma * (x - running_mean) / np.sqrt(running_var + eps) + beta", "out = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta"),
    wrong("assignment-alt-one-over-n", BN_ALT, "1/N forgotten in dx", "dx = gamma / (N * std) * (N * dout - dbeta - xn * dgamma)", "dx = gamma / std * (N * dout - dbeta - xn * dgamma)"),
    wrong("assignment-alt-n-of-features", BN_ALT, "N where D belongs in dx", "N = len(dout)\n    dbeta", "N = dout.shape[1]\n    dbeta"),
    wrong("assignment-alt-sign", BN_ALT, "sign in dx", "(N * dout - dbeta - xn * dgamma)", "(N * dout - dbeta + xn * dgamma)"),
    wrong("layer-n-for-d", LN, "N where D belongs in dx", "D = dt.shape[0]", "D = dt.shape[1]"),
    wrong("layer-gamma-outside", LN, "gamma outside the means", "dx = (D * g - g.sum(axis=0) - xn * (g * xn).sum(axis=0)) / (D * std)", "dx = gamma[:, None] * (D * dt - dt.sum(axis=0) - xn * (dt * xn).sum(axis=0)) / (D * std)"),
    wrong("layer-dgamma-axis", LN, "dgamma averaged", "dgamma = np.sum(dt * xn, axis=1)", "dgamma = np.mean(dt * xn, axis=1)"),
    wrong("layer-precedence", LN, "precedence of the division", "xn = xc / std\n    out = gamma[:, None]", "xn = xt - mu / std\n    out = gamma[:, None]"),
    wrong("spatial-reshape-only", SBN, "reshape without transpose", "flat = x.transpose(0, 2, 3, 1).reshape(-1, C)\n    out, cache = batchnorm_forward(flat, gamma, beta, bn_param)\n    return out.reshape(N, H, W, C).transpose(0, 3, 1, 2), cache", "flat = x.reshape(-1, C)\n    out, cache = batchnorm_forward(flat, gamma, beta, bn_param)\n    return out.reshape(N, C, H, W), cache", "flat = dout.transpose(0, 2, 3, 1).reshape(N * H * W, C)\n    dx, dgamma, dbeta = batchnorm_backward(flat, cache)\n    return dx.reshape(N, H, W, C).transpose(0, 3, 1, 2), dgamma, dbeta", "flat = dout.reshape(N * H * W, C)\n    dx, dgamma, dbeta = batchnorm_backward(flat, cache)\n    return dx.reshape(N, C, H, W), dgamma, dbeta"),
    wrong("spatial-not-back", SBN, "transpose not undone in the backward pass", "return dx.reshape(N, H, W, C).transpose(0, 3, 1, 2), dgamma, dbeta", "return dx.reshape(N, C, H, W), dgamma, dbeta"),
    wrong("group-m-of-positions", SGN, "wrong count in dx", "M = rows.shape[1]", "M = H * W"),
    wrong("group-groups-swapped", SGN, "wrong groups", "rows = x.reshape(N * G, C // G * H * W)", "rows = x.reshape(N * (C // G), G * H * W)", "g = (dout * gamma).reshape(N * G, -1)\n    rows = xn.reshape(N * G, -1)", "g = (dout * gamma).reshape(N * (C // G), -1)\n    rows = xn.reshape(N * (C // G), -1)"),
    wrong("book-abs", BOOK, "mean absolute deviation", "std = np.sqrt(var + 1e-6)\n            xn = xc / std", "std = np.abs(xc).mean(axis=0) + 1e-6\n            xn = xc / std"),
    wrong("book-running-of-batch", BOOK, "momentum missing", "self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var", "self.running_var = var"),
    wrong("object-momentum", OBJ_BN, "momentum reversed", "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * m\n            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * v", "self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * m\n            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * v"),
    wrong("images-forgotten-axis", BN2D, "forgotten axis", "mean = x.mean(axis=(0, 2, 3), keepdims=True)\n            var = x.var(axis=(0, 2, 3), keepdims=True)", "mean = x.mean(axis=(0, 2), keepdims=True)\n            var = x.var(axis=(0, 2), keepdims=True)", "self.mean_running = self.momentum * self.mean_running + (1 - self.momentum) * mean\n            self.var_running = self.momentum * self.var_running + (1 - self.momentum) * var", "self.mean_running = self.momentum * self.mean_running + (1 - self.momentum) * mean.mean(3, keepdims=True)\n            self.var_running = self.momentum * self.var_running + (1 - self.momentum) * var.mean(3, keepdims=True)", "m = dy.size // dy.shape[1]", "m = dy.shape[0] * dy.shape[2]", "s1 = dx_hat.sum(axis=axes, keepdims=True)\n        s2 = (dx_hat * self.x_hat).sum(axis=axes, keepdims=True)", "s1 = dx_hat.sum(axis=(0, 2), keepdims=True)\n        s2 = (dx_hat * self.x_hat).sum(axis=(0, 2), keepdims=True)"),
    wrong("images-count", BN2D, "wrong count in dx", "m = dy.size // dy.shape[1]", "m = dy.shape[0]"),
    wrong("instance-width-only", OBJ_IN, "forgotten axis", "axes = tuple(range(2, x.ndim))\n        self.shape = (1, -1) + (1,) * len(axes)", "axes = (x.ndim - 1,)\n        self.shape = (1, -1) + (1,) * (x.ndim - 2)", "axes = tuple(range(2, d.ndim))\n        every = (0,) + axes", "axes = (d.ndim - 1,)\n        every = (0,) + tuple(range(2, d.ndim))"),
    wrong("instance-sums", OBJ_IN, "1/N forgotten in dx", "(d - d.mean(axis=axes, keepdims=True) - self.h * (d * self.h).mean(axis=axes, keepdims=True))", "(d - d.sum(axis=axes, keepdims=True) - self.h * (d * self.h).sum(axis=axes, keepdims=True))"),
    wrong("dict-mean-of-beta", OBJ_LN, "dbeta averaged", 'self.grads["beta"] = dout.sum(axis=0, keepdims=True)', 'self.grads["beta"] = dout.mean(axis=0, keepdims=True)'),
    wrong("ab-squared", AB, "weight squared", "return self.a_2 * (x", "return self.a_2**2 * (x"),
    wrong("ab-minus-bias", AB, "bias subtracted", "torch.sqrt(var + self.eps) + self.b_2", "torch.sqrt(var + self.eps) - self.b_2"),
    wrong("alpha-bias-inside", ALPHA, "bias scaled by the weight", "return self.alpha * norm + self.bias", "return self.alpha * (norm + self.bias)"),
    wrong("shape-last-axis-only", SHAPE, "forgotten axis", "dims = tuple(range(-len(self.normalized_shape), 0))", "dims = (-1,)"),
    wrong("sequence-time-only", SEQ, "forgotten axis", "mean = x.mean((1, 2), keepdim=True)\n        var = x.var((1, 2), unbiased=False, keepdim=True)", "mean = x.mean(1, keepdim=True)\n        var = x.var(1, unbiased=False, keepdim=True)"),
    wrong("rms-l2", RMS, "L2 norm for RMS", "variance = wide.pow(2).mean(-1, keepdim=True)", "variance = wide.pow(2).sum(-1, keepdim=True)"),
    wrong("rms-centred", RMS, "centres", "variance = wide.pow(2).mean(-1, keepdim=True)\n        wide = wide *", "variance = wide.pow(2).mean(-1, keepdim=True)\n        wide = (wide - wide.mean(-1, keepdim=True)) *"),
    wrong("one-not-added", ONE, "one not added to the weight", "return self._norm(x) * (1.0 + self.weight)", "return self._norm(x) * self.weight"),
    wrong("group-interleaved", GN, "wrong groups", "x = x.view(N, self.G, -1)", "x = x.view(N, C // self.G, self.G, H, W).transpose(1, 2).reshape(N, self.G, -1)", "x = x.view(N, C, H, W)\n", "x = x.view(N, self.G, C // self.G, H, W).transpose(1, 2).reshape(N, C, H, W)\n"),
    wrong("group-unbiased", GN, "unbiased variance", "var = x.var(-1, keepdim=True, unbiased=False)\n        x = (x - mean) / (var + self.eps).sqrt()\n        x = x.view(N, C, H, W)", "var = x.var(-1, keepdim=True)\n        x = (x - mean) / (var + self.eps).sqrt()\n        x = x.view(N, C, H, W)"),
    wrong("instance-over-batch", IN, "pools the batch too", "flat = x.reshape(b * c, -1)", "flat = x.transpose(0, 1).reshape(c, -1)", "y = ((flat - mu) / sd).reshape(x.shape)", "y = ((flat - mu) / sd).reshape(c, b, *x.shape[2:]).transpose(0, 1)"),
    wrong("exp-eps-and-momentum", EXP, "eps and momentum swapped", "self.channels, self.eps, self.momentum = channels, eps, momentum", "self.channels, self.eps, self.momentum = channels, momentum, eps"),
    wrong("nhwc-batch-axis", NHWC_BN, "forgotten axis", "axes = tuple(range(x.ndim - 1))\n        mean, var = x.mean(axis=axes), x.var(axis=axes)", "axes = tuple(range(1, x.ndim - 1)) if x.ndim > 2 else (0,)\n        mean, var = x[:1].mean(axis=axes), x[:1].var(axis=axes)\n        mean, var = (mean[0], var[0]) if mean.ndim > 1 else (mean, var)"),
    wrong("root-mean-square-sum", NORM2, "L2 norm for RMS", "torch.sqrt(norm**2 / self.d + self.eps)", "torch.sqrt(norm**2 + self.eps)"),
    wrong("bin-both-halves-batch", BIN, "instance half with batch statistics", "of_instance = F.instance_norm(x, eps=self.eps)", "of_instance = F.batch_norm(x, None, None, None, None, True, 0.0, self.eps)"),
)  # fmt: skip

TWO_FAULTS: tuple[Wrong, ...] = (
    wrong("annotated", AB, "unbiased variance; eps outside the root", "torch.sqrt(var + self.eps) + self.b_2", "(x.std(-1, keepdim=True) + self.eps) + self.b_2"),
    wrong("two-dgamma-dbeta", BN, "dgamma averaged; dbeta averaged", "dbeta = np.sum(dout, axis=0)\n    dgamma = np.sum(dout * xn, axis=0)", "dbeta = np.mean(dout, axis=0)\n    dgamma = np.mean(dout * xn, axis=0)"),
    wrong("two-momentum-biased", STATS, "momentum reversed; biased running variance", "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)\n                self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))", "self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)\n                self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var)"),
    wrong("two-unbiased-weight", ALPHA, "unbiased variance; bias scaled by the weight", "norm = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)\n        return self.alpha * norm + self.bias", "norm = centred * torch.rsqrt(x.var(-1, keepdim=True) + self.eps)\n        return self.alpha * (norm + self.bias)"),
    wrong("two-no-eps-minus", AB, "eps missing; bias subtracted", "torch.sqrt(var + self.eps) + self.b_2", "torch.sqrt(var) - self.b_2"),
    wrong("two-squared-minus", AB, "weight squared; bias subtracted", "return self.a_2 * (x - mean) / torch.sqrt(var + self.eps) + self.b_2", "return self.a_2**2 * (x - mean) / torch.sqrt(var + self.eps) - self.b_2"),
    wrong("two-dx-dgamma", BN_ALT, "1/N forgotten in dx; dgamma without xhat", "dgamma = (dout * xn).sum(axis=0)\n    dx = gamma / (N * std) * (N * dout - dbeta - xn * dgamma)", "dgamma = (dout * xn).sum(axis=0)\n    dx = gamma / std * (N * dout - dbeta - xn * dgamma)\n    dgamma = dout.sum(axis=0)"),
    wrong("two-forward-running", BN, "eps outside the root; averages the standard deviation", "std = np.sqrt(var + eps)\n        xn", "std = np.sqrt(var) + eps\n        xn", "running_var = momentum * running_var + (1 - momentum) * var", "running_var = momentum * running_var + (1 - momentum) * std"),
    wrong("two-eval-running", D2L_F, "eps missing; momentum reversed", "torch.sqrt(moving_var + eps)", "torch.sqrt(moving_var)", "moving_mean = (1.0 - momentum) * moving_mean + momentum * mean\n        moving_var = (1.0 - momentum) * moving_var + momentum * var", "moving_mean = momentum * moving_mean + (1.0 - momentum) * mean\n        moving_var = momentum * moving_var + (1.0 - momentum) * var"),
    wrong("two-l2-centred", RMS_F, "L2 norm for RMS; centres", "return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps) * g", "x = x - x.mean(-1, keepdims=True)\n    return x / np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True) + eps) * g"),
    wrong("two-unbiased-axis", GN_F, "unbiased variance; forgotten axis", "mean = x.mean(dim=(2, 3, 4), keepdim=True)\n    var = x.var(dim=(2, 3, 4), keepdim=True, unbiased=False)", "mean = x.mean(dim=(2, 3), keepdim=True)\n    var = x.var(dim=(2, 3), keepdim=True)"),
    wrong("two-rms-pair", RMS_PAIR, "dx without gamma; dgamma of something else", "dw = (dout * x * r)", "dw = (dout * x)", "g = dout * w\n    dx = r * g", "g = dout\n    dx = r * g"),
    wrong("two-group-backward", SGN, "wrong count in dx; dx without gamma", "M = rows.shape[1]", "M = H * W", "g = (dout * gamma).reshape(N * G, -1)", "g = dout.reshape(N * G, -1)"),
    wrong("two-layer-backward", LN, "N where D belongs in dx; dbeta averaged", "D = dt.shape[0]\n    dbeta = np.sum(dt, axis=1)", "D = dt.shape[1]\n    dbeta = np.mean(dt, axis=1)"),
    wrong("two-book", BOOK, "momentum reversed; mean term of dx", "self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mu\n            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var", "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mu\n            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var", "dx = dxc - dmu / self.batch_size", "dx = dxc"),
    wrong("two-exp", EXP, "unbiased variance; momentum missing", "var = ((x - mean.view(1, -1, 1)) ** 2).mean(dim=[0, 2])", "var = x.var(dim=[0, 2])", "self.exp_mean = (1 - self.momentum) * self.exp_mean + self.momentum * mean.detach()", "self.exp_mean = mean.detach()"),
    wrong("two-images", BN2D, "dgamma averaged; mean term of dx", "self.dweight = (dy * self.x_hat).sum(axis=axes, keepdims=True)", "self.dweight = (dy * self.x_hat).mean(axis=axes, keepdims=True)", "return (dx_hat - s1 / m - self.x_hat * s2 / m) / self.std", "return (dx_hat - self.x_hat * s2 / m) / self.std"),
    wrong("two-instance", IN_F, "no square root; bias subtracted", "out = (x - mean) / np.sqrt(variance + eps)\n    return out * gamma[None, :, None, None] + beta", "out = (x - mean) / (variance + eps)\n    return out * gamma[None, :, None, None] - beta"),
    wrong("two-called", CALLED, "unbiased variance; biased mean update", "xvar = x.var(0, keepdim=True, unbiased=False)", "xvar = x.var(0, keepdim=True)", "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * xmean.squeeze(0)", "self.running_mean = (1 - self.momentum) * self.running_mean + xmean.squeeze(0)"),
    wrong("two-static", STATIC, "variance term of dx; dbeta averaged", "dx = dnorm - dnorm.mean(-1, keepdims=True) - norm * (dnorm * norm).mean(-1, keepdims=True)\n        return dx * rstd, (dout * norm).sum(axes), dout.sum(axes)", "dx = dnorm - dnorm.mean(-1, keepdims=True)\n        return dx * rstd, (dout * norm).sum(axes), dout.mean(axes)"),
    wrong("two-pair", LN_PAIR, "dx not divided by the deviation; sign in dx", "dx = dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)\n    dx *= rstd", "dx = dnorm - dnorm.mean(-1, keepdim=True) + norm * (dnorm * norm).mean(-1, keepdim=True)"),
    wrong("two-flat", FLAT, "reshape without transpose; momentum reversed", "rows = x.permute(0, 2, 3, 1).reshape(-1, c)", "rows = x.reshape(-1, c)", "return rows.reshape(n, h, w, c).permute(0, 3, 1, 2)", "return rows.reshape(n, c, h, w)", "self.moving_avg = self.momentum * self.moving_avg + (1 - self.momentum) * mean.detach()\n            self.moving_var = self.momentum * self.moving_var + (1 - self.momentum) * var.detach()", "self.moving_avg = (1 - self.momentum) * self.moving_avg + self.momentum * mean.detach()\n            self.moving_var = (1 - self.momentum) * self.moving_var + self.momentum * var.detach()"),
    wrong("two-function", BN_F, "eps outside the root; biased running variance", "inv = torch.rsqrt(var + eps) * weight", "inv = weight / (torch.sqrt(var) + eps)", "running_var.mul_(1 - momentum).add_(var * (n / (n - 1)), alpha=momentum)", "running_var.mul_(1 - momentum).add_(var, alpha=momentum)"),
)  # fmt: skip

WRONG: tuple[Wrong, ...] = (*ONE_FAULT, *TWO_FAULTS)
