# ruff: noqa: E501 (the patches quote code)
"""The wrong layers of the fourth set: one or two faults each, and what a knowing reader would say of them.

They were written before the writer read the library of wrong formulas; `docs/check.md` says what came after.
"""

from __future__ import annotations

from benchmarks.mutants.fourth.right_layers import BY_NAME
from benchmarks.mutants.written import Wrong, wrong_of

wrong = wrong_of(BY_NAME)

BN = "staged:batchnorm_forward,batchnorm_backward"
LN = "staged:layernorm_forward,layernorm_backward"
GN = "staged:spatial_groupnorm_forward,spatial_groupnorm_backward"
IN = "staged:instancenorm_forward,instancenorm_backward"
SBN = "moved:spatial_batchnorm_forward,spatial_batchnorm_backward"
OBJ_BN, OBJ_LN, OBJ_RMS = "objects:BatchNorm", "objects:LayerNorm", "objects:RMSNorm"
GPT, TEXT, BERT, ZERO = (f"transformers:{n}" for n in ("LayerNorm", "TextLayerNorm", "BertNorm", "ZeroInitNorm"))
GLOBAL, CHANNELS = "speech:GlobalLayerNorm", "speech:ChannelwiseLayerNorm"
BN2, LN2, GN2, IN2, BIN = (f"vision:{n}" for n in ("BatchNorm2d", "LayerNorm2d", "GroupNorm", "InstanceNorm2d", "BatchInstanceNorm2d"))  # fmt: skip
OWN_BN, OWN_RMS = "custom_grad:FunctionBatchNorm", "custom_grad:FunctionRMSNorm"
GN_F, LN_F, BN_F = "plain:group_norm", "plain:layer_norm", "plain:batch_norm"

ONE_FAULT: tuple[Wrong, ...] = (
    wrong("staged-dmu-of-first-term", BN, "mean term of dx", "dmu = -1 * np.sum(dxmu1 + dxmu2, axis=0)", "dmu = 1 * np.sum(dxmu1 + dxmu2, axis=0)"),
    wrong("staged-one-over-n-of-dx2", BN, "mean term of dx", "dx2 = 1.0 / N * np.ones((N, D)) * dmu", "dx2 = np.ones((N, D)) * dmu"),
    wrong("staged-two-forgotten", BN, "variance term of dx", "dxmu2 = 2 * xmu * dsq", "dxmu2 = xmu * dsq"),
    wrong("staged-ivar-not-squared", BN, "variance term of dx", "dsqrtvar = -1.0 / (sqrtvar**2) * divar", "dsqrtvar = -1.0 / sqrtvar * divar"),
    wrong("staged-eps-added-twice", BN, "eps outside the root", "sqrtvar = np.sqrt(var + eps)", "sqrtvar = np.sqrt(var) + eps"),
    wrong("staged-gamma-after", BN, "dx without gamma", "dxhat = dgammax * gamma", "dxhat = dgammax"),
    wrong("staged-layer-gamma-outside", LN, "gamma outside the means", "d_norm = dout * gamma", "d_norm = dout", "return inv * dx, dgamma", "return gamma * inv * dx, dgamma"),
    wrong("staged-layer-unbiased", LN, "unbiased variance", "var = np.var(x, axis=1, keepdims=True)", "var = np.var(x, axis=1, keepdims=True, ddof=1)"),
    wrong("staged-layer-over-batch", LN, "pools the batch instead", "mean = np.mean(x, axis=1, keepdims=True)\n    var = np.var(x, axis=1, keepdims=True)", "mean = np.mean(x, axis=0, keepdims=True)\n    var = np.var(x, axis=0, keepdims=True)"),
    wrong("staged-group-count", GN, "wrong count in dx", "m = C // G * H * W", "m = C * H * W"),
    wrong("staged-group-order", GN, "wrong groups", "xg = x.reshape((N, G, C // G, H, W))\n    mean", "xg = x.reshape((N, C // G, G, H, W)).swapaxes(1, 2)\n    mean", "x_hat = xg_hat.reshape(N, C, H, W)", "x_hat = xg_hat.swapaxes(1, 2).reshape(N, C, H, W)"),
    wrong("staged-group-variance-sign", GN, "variance term of dx", "xc * -0.5 * (var + eps) ** -1.5", "xc * 0.5 * (var + eps) ** -1.5"),
    wrong("staged-instance-dgamma-per-sample", IN, "dgamma averaged", "(dout * xhat).sum((0, 2, 3))", "(dout * xhat).sum((2, 3)).mean(0)"),
    wrong("staged-instance-one-axis", IN, "forgotten axis", "mu = x.mean((2, 3), keepdims=True)\n    s = 1 / np.sqrt(x.var((2, 3), keepdims=True) + eps)", "mu = x.mean(2, keepdims=True)\n    s = 1 / np.sqrt(x.var(2, keepdims=True) + eps)"),
    wrong("moved-not-moved", SBN, "reshape without transpose", "rows = np.moveaxis(x, 1, -1)\n    shape = rows.shape", "rows = x\n    shape = rows.shape", "out = np.moveaxis((gamma * xhat + beta).reshape(shape), -1, 1)", "out = (gamma * xhat + beta).reshape(shape)"),
    wrong("moved-gradient-not-moved", SBN, "transpose not undone in dx", "return np.moveaxis(dx.reshape(shape), -1, 1), dgamma, dbeta", "return dx.reshape(dout.shape), dgamma, dbeta"),
    wrong("moved-momentum", SBN, "momentum reversed", 'bn_param["running_mean"] = momentum * rm + (1 - momentum) * mu\n        bn_param["running_var"] = momentum * rv + (1 - momentum) * var', 'bn_param["running_mean"] = (1 - momentum) * rm + momentum * mu\n        bn_param["running_var"] = (1 - momentum) * rv + momentum * var'),
    wrong("object-not-divided-by-n", OBJ_BN, "1/N forgotten in dx", "return self.inv_std / n * (n * g", "return self.inv_std * (n * g"),
    wrong("object-test-statistics", OBJ_BN, "batch statistics in evaluation", "mean, var = self.running_mean, self.running_var", "mean, var = x.mean(0), x.var(0)"),
    wrong("object-running-deviation", OBJ_BN, "averages the standard deviation", "self.running_var += self.momentum * (var - self.running_var)", "self.running_var += self.momentum * (np.sqrt(var) - self.running_var)"),
    wrong("object-layer-absolute", OBJ_LN, "mean absolute deviation", "self.std = np.sqrt((self.xc**2).mean(axis=-1, keepdims=True) + self.eps)", "self.std = np.abs(self.xc).mean(axis=-1, keepdims=True) + self.eps"),
    wrong("object-layer-last-mean", OBJ_LN, "mean term of dx", "return dxc - dxc.mean(axis=-1, keepdims=True)", "return dxc"),
    wrong("object-rms-cube", OBJ_RMS, "variance term of dx", "return r * g - r**3 * x", "return r * g - r**2 * x"),
    wrong("text-sum", TEXT, "L2 norm for RMS", "wide.pow(2).mean(-1, keepdim=True)", "wide.pow(2).sum(-1, keepdim=True)"),
    wrong("bert-precedence", BERT, "mean divided only", "x = (x - u) / torch.sqrt(s + self.variance_epsilon)", "x = x - u / torch.sqrt(s + self.variance_epsilon)"),
    wrong("zero-no-one", ZERO, "one not added to the weight", "x, self.delta + 1)", "x, self.delta)"),
    wrong("global-time-only", GLOBAL, "forgotten axis", "mean = y.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)\n        var = (torch.pow(y - mean, 2)).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)", "mean = y.mean(dim=2, keepdim=True)\n        var = (torch.pow(y - mean, 2)).mean(dim=2, keepdim=True)"),
    wrong("channels-root", CHANNELS, "no square root", "torch.sqrt(var + 1e-8)", "(var + 1e-8)"),
    wrong("vision-biased-running", BN2, "biased running variance", "var * n / (n - 1)", "var"),
    wrong("vision-batch-axis-only", BN2, "forgotten axis", "var, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)", "var, mean = torch.var_mean(x, dim=(0, 2), unbiased=False)\n            var, mean = var.mean(-1), mean.mean(-1)"),
    wrong("vision-group-weight", GN2, "weight squared", "(out * self.weight[:, None] +", "(out * self.weight[:, None] ** 2 +"),
    wrong("vision-instance-momentless", IN2, "unbiased variance", "torch.var_mean(flat, dim=2, unbiased=False, keepdim=True)", "torch.var_mean(flat, dim=2, keepdim=True)"),
    wrong("bin-gate-reversed", BIN, "gate reversed", "rho * by_batch + (1 - rho) * by_instance", "(1 - rho) * by_batch + rho * by_instance"),
    wrong("own-dweight-not-scaled", OWN_BN, "variance term of dx", "xhat * (weight * dweight).view(shape) / m)", "xhat * (weight * dbias).view(shape) / m)"),
    wrong("own-rms-dweight", OWN_RMS, "dgamma without xhat", "(dy * n).flatten(0, -2).sum(0)", "dy.flatten(0, -2).sum(0)"),
    wrong("plain-running-not-momentum", BN_F, "momentum missing", "running_mean.copy_((1 - momentum) * running_mean + momentum * mean)", "running_mean.copy_(mean)"),
)  # fmt: skip

TWO_FAULTS: tuple[Wrong, ...] = (
    wrong("two-staged", BN, "eps outside the root; dgamma averaged", "sqrtvar = np.sqrt(var + eps)", "sqrtvar = np.sqrt(var) + eps", "dgamma = np.sum(dgammax * xhat, axis=0)", "dgamma = np.mean(dgammax * xhat, axis=0)"),
    wrong("two-staged-dx", BN, "mean term of dx; dx without gamma", "dx = dx1 + dx2", "dx = dx1", "dxhat = dgammax * gamma", "dxhat = dgammax"),
    wrong("two-layer", LN, "unbiased variance; gamma outside the means", "var = np.var(x, axis=1, keepdims=True)", "var = np.var(x, axis=1, keepdims=True, ddof=1)", "d_norm = dout * gamma", "d_norm = dout", "return inv * dx, dgamma", "return gamma * inv * dx, dgamma"),
    wrong("two-group", GN, "wrong count in dx; dbeta averaged", "m = C // G * H * W\n    dbeta = np.sum(", "m = H * W\n    dbeta = np.mean("),
    wrong("two-moved", SBN, "momentum reversed; 1/N forgotten in dx", 'bn_param["running_mean"] = momentum * rm + (1 - momentum) * mu\n        bn_param["running_var"] = momentum * rv + (1 - momentum) * var', 'bn_param["running_mean"] = (1 - momentum) * rm + momentum * mu\n        bn_param["running_var"] = (1 - momentum) * rv + momentum * var', "dx = gamma * istd / m * (m * d", "dx = gamma * istd * (m * d"),
    wrong("two-object", OBJ_BN, "unbiased variance; variance term of dx", "var = x.var(0)\n", "var = x.var(0, ddof=1)\n", "return self.inv_std / n * (n * g - g.sum(0) - self.x_hat * (g * self.x_hat).sum(0))", "return self.inv_std / n * (n * g - g.sum(0))"),
    wrong("two-object-layer", OBJ_LN, "no square root; bias subtracted", "self.std = np.sqrt((self.xc**2).mean(axis=-1, keepdims=True) + self.eps)", "self.std = (self.xc**2).mean(axis=-1, keepdims=True) + self.eps", "return self.xhat * self.gamma + self.beta", "return self.xhat * self.gamma - self.beta"),
    wrong("two-bert", BERT, "eps outside the root; bias scaled by the weight", "x = (x - u) / torch.sqrt(s + self.variance_epsilon)\n        return self.gamma * x + self.beta", "x = (x - u) / (torch.sqrt(s) + self.variance_epsilon)\n        return self.gamma * (x + self.beta)"),
    wrong("two-global", GLOBAL, "unbiased variance; weight squared", "var = (torch.pow(y - mean, 2)).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)\n        return self.gamma * (y", "var = y.var(dim=(1, 2), keepdim=True)\n        return self.gamma**2 * (y"),
    wrong("two-vision", BN2, "momentum reversed; biased running variance", "factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum", "factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else 1 - self.momentum", "var * n / (n - 1)", "var"),
    wrong("two-instance", IN2, "unbiased variance; bias subtracted", "torch.var_mean(flat, dim=2, unbiased=False, keepdim=True)", "torch.var_mean(flat, dim=2, keepdim=True)", "+ self.shift.view(1, -1, 1, 1)", "- self.shift.view(1, -1, 1, 1)"),
    wrong("two-bin", BIN, "gate reversed; unbiased variance in the instance half", "rho * by_batch + (1 - rho) * by_instance", "(1 - rho) * by_batch + rho * by_instance", "var = x.var((2, 3), unbiased=False, keepdim=True)", "var = x.var((2, 3), keepdim=True)"),
    wrong("two-own", OWN_BN, "dgamma without xhat; biased running variance", "return dx, dweight, dbias, None", "return dx, dbias, dbias, None", "self.running_var.mul_(1 - self.momentum).add_(x.var(dims), alpha=self.momentum)", "self.running_var.mul_(1 - self.momentum).add_(x.var(dims, unbiased=False), alpha=self.momentum)"),
    wrong("two-own-rms", OWN_RMS, "dx without gamma; dgamma averaged", "g = dy * weight\n        dx = r * (g - n", "g = dy\n        dx = r * (g - n", "(dy * n).flatten(0, -2).sum(0)", "(dy * n).flatten(0, -2).mean(0)"),
    wrong("two-plain-group", GN_F, "eps outside the root; bias scaled by the weight", "torch.sqrt(grouped.pow(2).mean(dims, keepdim=True) + eps)", "(torch.sqrt(grouped.pow(2).mean(dims, keepdim=True)) + eps)", "return grouped.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)", "return (grouped.reshape(x.shape) + bias.reshape(shape)) * weight.reshape(shape)"),
    wrong("two-plain-layer", LN_F, "eps missing; unbiased variance", "variance = np.mean((x - mean) ** 2, axis=-1, keepdims=True)\n    return gamma * ((x - mean) / np.sqrt(variance + eps)) + beta", "variance = np.var(x, axis=-1, keepdims=True, ddof=1)\n    return gamma * ((x - mean) / np.sqrt(variance)) + beta"),
)  # fmt: skip

WRONG: tuple[Wrong, ...] = (*ONE_FAULT, *TWO_FAULTS)
