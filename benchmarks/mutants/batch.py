# ruff: noqa: E501 (the patches quote code)
"""Bugs in batch normalization: the torch Module first, then the NumPy pair."""

from __future__ import annotations

from functools import partial

from benchmarks.mutants.base import Mutant, mutant

forward = partial(mutant, original="batch_torch", aspect="forward")


def _torch(aspect: str, name: str, cause: str, *edits: str) -> Mutant:
    return mutant(f"batch-{name}", "batch_torch", aspect, cause, *edits)


def _numpy(aspect: str, name: str, cause: str, *edits: str) -> Mutant:
    return mutant(f"batch-numpy-{name}", "batch_numpy", aspect, cause, *edits)


STD = "torch.sqrt(var + eps).reshape(shape)"
OUT = "weight.reshape(shape) * xhat + bias.reshape(shape)"
VAR = "var = (centred * centred).mean(axes)"
RUN_MEAN = "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)"
RUN_VAR = "self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))"
DX = "dx = (g - mean_term - var_term) / std"
MEAN_TERM = "mean_term = g.mean(axes, keepdim=True)"
VAR_TERM = "var_term = xhat * (g * xhat).mean(axes, keepdim=True)"
DWEIGHT = "dweight = (dy * xhat).sum(axes)"
DBIAS = "dbias = dy.sum(axes)"
GRAD = "g = dy * weight"
BUFFER_MEAN = 'self.register_buffer("running_mean", torch.zeros(num_features))'
BUFFER_VAR = 'self.register_buffer("running_var", torch.ones(num_features))'
WEIGHT = "self.weight = nn.Parameter(torch.ones(num_features))"
WIDE = "wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x"
SAVE = "ctx.save_for_backward(xhat, std, weight.reshape(shape))"
LOAD = "xhat, std, weight = ctx.saved_tensors"
TWO = """            if n < 2:
                raise ValueError("expected more than one value per channel in training")
"""
CHANNELS = """        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")
"""

TORCH = (
    _torch("forward", "eps-outside", "eps-outside-root", STD, "(torch.sqrt(var) + eps).reshape(shape)"),
    _torch("forward", "no-eps", "eps-missing", STD, "torch.sqrt(var).reshape(shape)"),
    _torch("forward", "eps-built-in", "eps-ignored", STD, "torch.sqrt(var + 1e-5).reshape(shape)"),
    _torch("forward", "eps-floor", "eps-clamp", STD, "torch.sqrt(var.clamp(min=eps)).reshape(shape)"),
    _torch("forward", "no-root", "root-missing", STD, "(var + eps).reshape(shape)"),
    _torch(
        *("forward", "var-default", "unbiased-normalization", VAR, "var = wide.var(axes)"),
        *("self.momentum * var * n / (n - 1)", "self.momentum * var"),
    ),
    _torch("forward", "not-centred", "mean-not-subtracted", "xhat = (x - mean.reshape(shape)) / std", "xhat = x / std"),
    _torch("forward", "second-moment", "second-moment-for-variance", VAR, "var = (wide * wide).mean(axes)"),
    _torch("forward", "sum-of-squares", "sum-for-mean", VAR, "var = (centred * centred).sum(axes)"),
    _torch(
        *("forward", "one-mean-for-all", "pools-everything"),
        *("mean = wide.mean(axes)", "mean = wide.mean().expand(self.num_features)"),
        *(VAR, "var = (centred * centred).mean().expand(self.num_features)"),
    ),
    _torch("forward", "no-gamma", "weight-missing", OUT, "xhat + bias.reshape(shape)"),
    _torch("forward", "no-beta", "bias-missing", OUT, "weight.reshape(shape) * xhat"),
    _torch("forward", "beta-first", "bias-before-weight", OUT, "weight.reshape(shape) * (xhat + bias.reshape(shape))"),
    _torch("forward", "parameters-swapped", "weight-bias-swapped", "weight, bias, self.eps", "bias, weight, self.eps"),
    _torch(
        "forward", "one-plus-gamma", "weight-plus-one", OUT, "(1 + weight.reshape(shape)) * xhat + bias.reshape(shape)"
    ),
    # backward
    _torch("backward", "no-mean-term", "dx-mean-term-missing", DX, "dx = (g - var_term) / std"),
    _torch("backward", "no-variance-term", "dx-variance-term-missing", DX, "dx = (g - mean_term) / std"),
    _torch("backward", "statistics-constant", "dx-statistics-constant", DX, "dx = g / std"),
    _torch("backward", "no-gamma-in-dx", "dx-weight-missing", GRAD, "g = dy"),
    _torch("backward", "dx-undivided", "dx-not-divided-by-std", DX, "dx = g - mean_term - var_term"),
    _torch("backward", "dx-over-variance", "dx-divided-by-variance", DX, "dx = (g - mean_term - var_term) / std**2"),
    _torch("backward", "plus-mean-term", "dx-mean-sign", DX, "dx = (g + mean_term - var_term) / std"),
    _torch("backward", "plus-variance-term", "dx-variance-sign", DX, "dx = (g - mean_term + var_term) / std"),
    _torch(
        *("backward", "sums", "dx-sums-not-means", MEAN_TERM, "mean_term = g.sum(axes, keepdim=True)"),
        *(VAR_TERM, "var_term = xhat * (g * xhat).sum(axes, keepdim=True)"),
    ),
    _torch(
        *("backward", "divides-by-batch", "dx-positions-not-counted"),
        *(MEAN_TERM, "mean_term = g.sum(axes, keepdim=True) / dy.shape[0]"),
        *(VAR_TERM, "var_term = xhat * (g * xhat).sum(axes, keepdim=True) / dy.shape[0]"),
    ),
    _torch(
        *("backward", "means-over-axis-0", "dx-pools-batch-only"),
        *(MEAN_TERM, "mean_term = g.mean(0, keepdim=True)"),
        *(VAR_TERM, "var_term = xhat * (g * xhat).mean(0, keepdim=True)"),
    ),
    _torch(
        *("backward", "n-minus-one", "dx-count-minus-one", VAR_TERM),
        "n = dy.numel() // dy.shape[1]; var_term = xhat * (g * xhat).sum(axes, keepdim=True) / (n - 1)",
    ),
    _torch(
        *("backward", "xhat-not-divided", "dx-centred-for-normalized"),
        *(VAR_TERM, "var_term = xhat * std * (g * xhat).mean(axes, keepdim=True)"),
    ),
    _torch("backward", "training-dx-in-eval", "dx-training-formula-in-eval", "if ctx.training:", "if True:"),
    _torch("backward", "dgamma-mean", "dweight-mean", DWEIGHT, "dweight = (dy * xhat).mean(axes)"),
    _torch("backward", "dgamma-undivided", "dweight-not-normalized", DWEIGHT, "dweight = (dy * xhat * std).sum(axes)"),
    _torch(
        "backward",
        "dgamma-times-gamma",
        "dweight-scaled-by-weight",
        DWEIGHT,
        "dweight = (dy * weight * xhat).sum(axes)",
    ),
    _torch("backward", "dgamma-negative", "dweight-sign", DWEIGHT, "dweight = -(dy * xhat).sum(axes)"),
    _torch("backward", "dgamma-none", "dweight-zero", "None, None, dweight, dbias", "None, None, None, dbias"),
    _torch("backward", "dbeta-mean", "dbias-mean", DBIAS, "dbias = dy.mean(axes)"),
    _torch("backward", "dbeta-times-gamma", "dbias-scaled-by-weight", DBIAS, "dbias = (dy * weight).sum(axes)"),
    _torch(
        "backward",
        "gradients-swapped",
        "dweight-is-dbias",
        "dweight, dbias, None, None, None",
        "dbias, dweight, None, None, None",
    ),
    # state
    _torch(
        *("state", "momentum-swapped", "momentum-swapped"),
        *(RUN_MEAN, "self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)"),
        *(RUN_VAR, "self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var * n / (n - 1))"),
    ),
    _torch("state", "stores-biased", "running-var-biased", "self.momentum * var * n / (n - 1)", "self.momentum * var"),
    _torch("state", "correction-inverted", "running-var-correction-inverted", "var * n / (n - 1)", "var * (n - 1) / n"),
    _torch("state", "correction-by-batch", "running-var-count", "var * n / (n - 1)", "var * len(x) / (len(x) - 1)"),
    _torch("state", "stores-std", "running-var-is-std", "var * n / (n - 1)", "(var * n / (n - 1)).sqrt()"),
    _torch("state", "stores-eps", "running-var-with-eps", "var * n / (n - 1)", "(var * n / (n - 1) + self.eps)"),
    _torch(
        *("state", "overwrites", "momentum-missing", RUN_MEAN, "self.running_mean.copy_(mean)"),
        *(RUN_VAR, "self.running_var.copy_(var * n / (n - 1))"),
    ),
    _torch(
        *("state", "accumulates", "running-accumulates", RUN_MEAN, "self.running_mean.add_(self.momentum * mean)"),
        *(RUN_VAR, "self.running_var.add_(self.momentum * var * n / (n - 1))"),
    ),
    _torch(
        *("state", "updates-a-copy", "running-not-updated"),
        *(RUN_MEAN, "running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean"),
        *(RUN_VAR, "running_var = (1 - self.momentum) * self.running_var + self.momentum * var * n / (n - 1)"),
    ),
    _torch("state", "forgets-var", "running-var-not-updated", RUN_VAR, "pass"),
    _torch(
        "state",
        "updates-twice",
        "running-updated-twice",
        "with torch.no_grad():",
        "for _ in range(2):",
        f"    {RUN_MEAN}",
        f"    {RUN_MEAN.replace('* mean', '* mean.detach()')}",
        f"    {RUN_VAR}",
        f"    {RUN_VAR.replace('* var', '* var.detach()')}",
    ),
    _torch(
        *("state", "around-running-mean", "running-var-around-running-mean", "self.momentum * var * n / (n - 1)"),
        "self.momentum * ((wide - self.running_mean.reshape(shape)) ** 2).mean(axes)",
    ),
    _torch(
        *("state", "momentum-built-in", "momentum-ignored"),
        *(RUN_MEAN, "self.running_mean.mul_(0.9).add_(0.1 * mean)"),
        *(RUN_VAR, "self.running_var.mul_(0.9).add_(0.1 * var * n / (n - 1))"),
    ),
    _torch(
        *("state", "first-batch-whole", "first-batch-whole"),
        *("self.momentum = momentum\n", "self.momentum = momentum\n        self.started = False\n"),
        *(
            "with torch.no_grad():",
            "momentum = self.momentum if self.started else 1.0\n            self.started = True\n            with torch.no_grad():",
        ),
        *(RUN_MEAN, "self.running_mean.mul_(1 - momentum).add_(momentum * mean)"),
        *(RUN_VAR, "self.running_var.mul_(1 - momentum).add_(momentum * var * n / (n - 1))"),
    ),
    _torch(
        "state",
        "eval-with-batch",
        "batch-statistics-in-eval",
        "mean, var = self.running_mean, self.running_var",
        "mean = wide.mean(axes); var = ((wide - mean.reshape(shape)) ** 2).mean(axes)",
    ),
    _torch(
        *("state", "eval-as-std", "running-var-as-std"),
        *(
            "mean, var = self.running_mean, self.running_var",
            "mean, var = self.running_mean, self.running_var**2 - self.eps",
        ),
    ),
    _torch(
        *("state", "train-with-running", "running-in-training"),
        *(RUN_VAR, RUN_VAR + "\n            mean, var = self.running_mean.clone(), self.running_var.clone()"),
    ),
    _torch(
        *("state", "updates-in-eval", "updates-in-eval", "mean, var = self.running_mean, self.running_var"),
        "mean, var = self.running_mean.clone(), self.running_var.clone()\n"
        "            self.running_mean.lerp_(wide.detach().mean(axes).to(mean.dtype), self.momentum)",
    ),
    _torch(
        *("state", "keeps-graph", "running-keeps-graph", "with torch.no_grad():", "if True:"),
        *(RUN_MEAN, "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean"),
        *(RUN_VAR, "self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var * n / (n - 1)"),
    ),
    _torch(
        *("state", "running-parameters", "running-requires-grad"),
        *(BUFFER_MEAN, "self.running_mean = nn.Parameter(torch.zeros(num_features))"),
        *(BUFFER_VAR, "self.running_var = nn.Parameter(torch.ones(num_features))"),
    ),
    _torch(
        *("state", "no-buffers", "state-not-saved"),
        *(BUFFER_MEAN, "self.running_mean = torch.zeros(num_features)"),
        *(BUFFER_VAR, "self.running_var = torch.ones(num_features)"),
    ),
    _torch(
        *("state", "buffers-not-persistent", "state-not-saved"),
        *(BUFFER_MEAN, BUFFER_MEAN[:-1] + ", persistent=False)"),
        *(BUFFER_VAR, BUFFER_VAR[:-1] + ", persistent=False)"),
    ),
    _torch("state", "starts-at-zero-var", "initial-running-var", BUFFER_VAR, BUFFER_VAR.replace("ones", "zeros")),
    _torch("state", "random-gamma", "initial-weight", WEIGHT, "self.weight = nn.Parameter(torch.rand(num_features))"),
    _torch(
        "state",
        "gamma-not-parameter",
        "parameter-not-registered",
        WEIGHT,
        "self.weight = torch.ones(num_features, requires_grad=True)",
    ),
    _torch(
        *("state", "no-grad-no-update", "no-grad-skips-update", "with torch.no_grad():", "if torch.is_grad_enabled():"),
        *(RUN_MEAN, RUN_MEAN.replace("* mean", "* mean.detach()")),
        *(RUN_VAR, RUN_VAR.replace("* var", "* var.detach()")),
    ),
    _torch(
        *(
            "state",
            "shared-buffers",
            "shared-state",
            "class BatchNorm(nn.Module):",
            "_STATE = {}\n\n\nclass BatchNorm(nn.Module):",
        ),
        *(
            BUFFER_MEAN,
            'self.register_buffer("running_mean", _STATE.setdefault(num_features, torch.zeros(num_features)))',
        ),
    ),
    _torch(
        *("state", "saved-on-class", "kept-on-layer", SAVE, "_Normalize.saved = (xhat, std, weight.reshape(shape))"),
        *(LOAD, "xhat, std, weight = _Normalize.saved"),
    ),
    _torch(
        "state",
        "lambda-attribute",
        "pickle-fails",
        "self.eps = eps\n",
        "self.eps = eps\n        self.fallback = lambda x: x\n",
    ),
    _torch(
        "state", "keeps-output", "deepcopy-fails", "return y.to(x.dtype)", "self.last = y\n        return y.to(x.dtype)"
    ),
    _torch(
        *("state", "count-kept", "remembers-shape", "n = x.numel() // x.shape[1]"),
        'n = self.n = getattr(self, "n", x.numel() // x.shape[1])',
    ),
    _torch(
        *("state", "scratch-on-layer", "not-thread-safe"),
        *("std = torch.sqrt", "_Normalize.centred = x - mean.reshape(shape)\n        std = torch.sqrt"),
        *("xhat = (x - mean.reshape(shape)) / std", "xhat = _Normalize.centred / std"),
    ),
    _torch(
        "state",
        "frozen-early-out",
        "freeze-changes-dx",
        LOAD,
        LOAD + "\n        if not ctx.needs_input_grad[3]:\n            return (None,) * 8",
    ),
    # numerics
    _torch("numerics", "difference-of-squares", "cancellation", VAR, "var = (wide * wide).mean(axes) - mean * mean"),
    _torch(
        *("numerics", "running-difference-of-squares", "running-cancellation"),
        *(
            "self.momentum * var * n / (n - 1)",
            "self.momentum * ((wide * wide).mean(axes) - mean * mean) * n / (n - 1)",
        ),
    ),
    _torch("numerics", "half-statistics", "half-precision-statistics", WIDE, "wide = x"),
    _torch("numerics", "returns-float32", "output-dtype", "return y.to(x.dtype)", "return y"),
    _torch("numerics", "nan-variance-of-one", "running-var-one-value", TWO, ""),
    # layout
    _torch(
        "layout",
        "views",
        "view-of-noncontiguous",
        "mean = wide.mean(axes)",
        "mean = wide.view(len(x), x.shape[1], -1).mean((0, 2))",
    ),
    _torch(
        *("layout", "assumes-contiguous", "ignores-strides", "mean = wide.mean(axes)"),
        "s = n // len(x); mean = wide.as_strided((len(x), x.shape[1], s), (x.shape[1] * s, s, 1)).mean((0, 2))",
    ),
    _torch("layout", "broadcasts-channels", "wrong-channels-accepted", CHANNELS, ""),
    _torch(
        "layout",
        "one-sample-uses-running",
        "one-sample",
        "if self.training:\n            if n < 2:",
        "if self.training and len(x) > 1:\n            if n < 2:",
    ),
    _torch(
        "layout",
        "in-place",
        "changes-input",
        "xhat = (x - mean.reshape(shape)) / std",
        "xhat = x.sub_(mean.reshape(shape)) / std",
    ),
)

NP_STD = "std = np.sqrt(var + eps).reshape(shape)"
NP_VAR = "var = (centred**2).sum(axis=axes) / n"
NP_DX = "dx = (dxhat - mean_term - var_term) / std"
NP_MEAN = "running_mean = momentum * running_mean + (1 - momentum) * mean"
NP_RVAR = "running_var = momentum * running_var + (1 - momentum) * var"
NP_DGAMMA = "dgamma = (dout * xhat).sum(axis=axes)"

NUMPY = (
    _numpy("forward", "eps-outside", "eps-outside-root", NP_STD, "std = (np.sqrt(var) + eps).reshape(shape)"),
    _numpy(
        "forward",
        "eps-twice",
        "eps-twice",
        NP_VAR,
        "var = (centred**2).sum(axis=axes) / n + eps",
        "(1 - momentum) * var",
        "(1 - momentum) * (var - eps)",
    ),
    _numpy(
        "forward",
        "ddof-1",
        "unbiased-normalization",
        NP_VAR,
        "var = (centred**2).sum(axis=axes) / (n - 1)",
        "(1 - momentum) * var",
        "(1 - momentum) * var * (n - 1) / n",
    ),
    _numpy(
        "forward", "absolute-deviation", "absolute-deviation", NP_VAR, "var = (np.abs(centred).sum(axis=axes) / n) ** 2"
    ),
    _numpy("forward", "counts-samples-only", "positions-not-counted", "n = x.size // channels", "n = x.shape[0]"),
    _numpy(
        *("forward", "reshape-without-transpose", "axes-not-moved"),
        *(
            "centred = x - mean.reshape(shape)\n        var =",
            "mean = x.reshape(-1, channels).mean(axis=0)\n        centred = x.reshape(-1, channels) - mean\n        var =",
        ),
        *(NP_VAR, "var = (centred**2).mean(axis=0)\n        centred = centred.reshape(x.shape)"),
        *("xhat = centred / std", "xhat = (centred.reshape(-1, channels) / std.reshape(-1)).reshape(x.shape)"),
    ),
    _numpy("forward", "gamma-absolute", "weight-absolute", "out = gamma", "out = np.abs(gamma)"),
    _numpy("backward", "no-mean-term", "dx-mean-term-missing", NP_DX, "dx = (dxhat - var_term) / std"),
    _numpy("backward", "no-variance-term", "dx-variance-term-missing", NP_DX, "dx = (dxhat - mean_term) / std"),
    _numpy(
        "backward",
        "mean-term-sum",
        "dx-mean-term-sum",
        "keepdims=True) / n\n    var_term",
        "keepdims=True)\n    var_term",
    ),
    _numpy(
        "backward",
        "variance-term-sum",
        "dx-mean-of-variance-sum",
        "keepdims=True) / n\n    dx",
        "keepdims=True)\n    dx",
    ),
    _numpy("backward", "no-gamma-in-dx", "dx-weight-missing", "dxhat = dout * gamma", "dxhat = dout"),
    _numpy(
        "backward",
        "dgamma-from-output",
        "dweight-from-output",
        NP_DGAMMA,
        "dgamma = (dout * out).sum(axis=axes)",
        "return out, (xhat,",
        "return out, (out, xhat,",
        "    xhat, std, gamma, axes, n, training = cache",
        "    out, xhat, std, gamma, axes, n, training = cache",
    ),
    _numpy(
        "backward",
        "dgamma-from-input",
        "dweight-from-input",
        NP_DGAMMA,
        "dgamma = (dout * x).sum(axis=axes)",
        "return out, (xhat,",
        "return out, (x, xhat,",
        "    xhat, std, gamma, axes, n, training = cache",
        "    x, xhat, std, gamma, axes, n, training = cache",
    ),
    _numpy(
        "backward",
        "dbeta-one-sample",
        "dbias-first-sample",
        "dbeta = dout.sum(axis=axes)",
        "dbeta = dout[0].sum(axis=axes[:-1]) if dout.ndim == 2 else dout[0].sum(axis=tuple(a - 1 for a in axes[1:]))",
    ),
    _numpy(
        "backward",
        "cache-overwritten",
        "backward-changes-cache",
        "dxhat = dout * gamma\n",
        "dxhat = dout * gamma\n    product = np.multiply(xhat, dxhat, out=xhat) if False else None\n    std *= 1.0\n    xhat_before = xhat.copy()\n",
        NP_DX,
        "dx = (dxhat - mean_term - var_term) / std\n    xhat *= std",
    ),
    _numpy(
        "backward",
        "dout-overwritten",
        "changes-gradient",
        "dxhat = dout * gamma\n",
        "dout *= gamma\n    dxhat = dout\n",
    ),
    _numpy(
        "state",
        "momentum-swapped",
        "momentum-swapped",
        NP_MEAN,
        "running_mean = (1 - momentum) * running_mean + momentum * mean",
        NP_RVAR,
        "running_var = (1 - momentum) * running_var + momentum * var",
    ),
    _numpy(
        "state", "stores-unbiased", "running-var-unbiased", "(1 - momentum) * var", "(1 - momentum) * var * n / (n - 1)"
    ),
    _numpy(
        "state",
        "not-stored",
        "running-not-updated",
        'bn_param["running_mean"] = running_mean\n    bn_param["running_var"] = running_var\n    ',
        "",
    ),
    _numpy("state", "not-scaled", "running-unscaled", "(1 - momentum) * mean", "mean", "(1 - momentum) * var", "var"),
    _numpy(
        "state",
        "swapped",
        "running-swapped",
        NP_MEAN,
        "running_mean = momentum * running_mean + (1 - momentum) * var_of(x, axes)",
        NP_RVAR,
        "running_var = momentum * running_var + (1 - momentum) * mean",
        "import numpy as np\n",
        "import numpy as np\n\n\ndef var_of(x, axes):\n    return x.var(axis=axes)\n",
    ),
    _numpy(
        "state", "mode-misspelt", "running-in-training", 'bn_param["mode"] == "train"', 'bn_param["mode"] == "training"'
    ),
    _numpy(
        "state",
        "mean-of-xhat",
        "running-mean-of-output",
        NP_MEAN,
        "running_mean = momentum * running_mean + (1 - momentum) * centred.mean(axis=axes)",
    ),
    _numpy(
        "state",
        "inverse-std",
        "running-var-is-inverse-std",
        "(1 - momentum) * var",
        "(1 - momentum) / np.sqrt(var + eps)",
    ),
    _numpy("numerics", "difference-of-squares", "cancellation", NP_VAR, "var = (x**2).sum(axis=axes) / n - mean**2"),
    _numpy(
        "layout",
        "in-place",
        "changes-input",
        "centred = x - mean.reshape(shape)\n        var",
        "x -= mean.reshape(shape)\n        centred = x\n        var",
    ),
)
