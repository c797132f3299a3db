"""Bugs in batch-instance normalization."""

from __future__ import annotations

from benchmarks.mutants.base import Mutant, mutant


def _bin(aspect: str, name: str, cause: str, *edits: str) -> Mutant:
    return mutant(f"batch-instance-{name}", "batch_instance_torch", aspect, cause, *edits)


MIX = "xhat = rho * batch + (1 - rho) * instance"
DRHO = "drho = (g * (batch - instance)).sum((0, 2, 3), keepdim=True)"
RUN_MEAN = "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)"
RUN_VAR = "self.running_var.mul_(1 - self.momentum).add_(self.momentum * var * n / (n - 1))"

BATCH_INSTANCE = (
    _bin("forward", "gate-swapped", "gate-swapped", MIX, "xhat = (1 - rho) * batch + rho * instance"),
    _bin("forward", "gate-ignored", "gate-ignored", MIX, "xhat = (batch + instance) / 2 + 0 * rho"),
    _bin("forward", "instance-unweighted", "gate-half-missing", MIX, "xhat = rho * batch + instance"),
    _bin(
        "forward", "sigmoid-gate", "gate-sigmoid", MIX, "xhat = rho.sigmoid() * batch + (1 - rho.sigmoid()) * instance"
    ),
    _bin("forward", "one-gate", "gate-not-per-channel", MIX, "xhat = rho.mean() * batch + (1 - rho.mean()) * instance"),
    _bin(
        "forward", "batch-of-instance", "pools-instance-for-batch", "batch = (x - mean) / batch_std", "batch = instance"
    ),
    _bin(
        *("forward", "instance-var-default", "unbiased-normalization"),
        *(
            "instance_var = (instance_centred * instance_centred).mean((2, 3), keepdim=True)",
            "instance_var = x.var((2, 3), keepdim=True)",
        ),
    ),
    _bin(
        "forward",
        "eps-outside",
        "eps-outside-root",
        "batch_std = torch.sqrt(var + eps)",
        "batch_std = torch.sqrt(var) + eps",
        "instance_std = torch.sqrt(instance_var + eps)",
        "instance_std = torch.sqrt(instance_var) + eps",
    ),
    _bin("forward", "no-beta", "bias-missing", "return weight * xhat + bias", "return weight * xhat"),
    _bin("backward", "drho-sign", "dgate-sign", DRHO, "drho = (g * (instance - batch)).sum((0, 2, 3), keepdim=True)"),
    _bin(
        "backward",
        "drho-no-weight",
        "dgate-weight-missing",
        DRHO,
        "drho = (dy * (batch - instance)).sum((0, 2, 3), keepdim=True)",
    ),
    _bin("backward", "drho-half", "dgate-half-missing", DRHO, "drho = (g * batch).sum((0, 2, 3), keepdim=True)"),
    _bin("backward", "drho-mean", "dgate-mean", DRHO, "drho = (g * (batch - instance)).mean((0, 2, 3), keepdim=True)"),
    _bin("backward", "drho-none", "dgate-zero", "dweight, dbias, drho, None, None", "dweight, dbias, None, None, None"),
    _bin(
        "backward",
        "batch-half-only",
        "dx-half-missing",
        "dx = dx + (gi - instance_mean_term - instance_var_term) / instance_std",
        "dx = dx + 0 * gi",
    ),
    _bin(
        "backward",
        "gates-crossed",
        "dx-gates-crossed",
        "gb = g * rho",
        "gb = g * (1 - rho)",
        "gi = g * (1 - rho)",
        "gi = g * rho",
    ),
    _bin(
        *("backward", "no-mean-terms", "dx-mean-term-missing"),
        *("(gb - batch_mean_term - batch_var_term)", "(gb - batch_var_term)"),
        *("(gi - instance_mean_term - instance_var_term)", "(gi - instance_var_term)"),
    ),
    _bin("backward", "dweight-batch-half", "dweight-batch-half", "dweight = (dy * xhat)", "dweight = (dy * batch)"),
    _bin("state", "stores-biased", "running-var-biased", "self.momentum * var * n / (n - 1)", "self.momentum * var"),
    _bin(
        "state",
        "momentum-swapped",
        "momentum-swapped",
        RUN_MEAN,
        "self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)",
        RUN_VAR,
        "self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var * n / (n - 1))",
    ),
    _bin(
        "state",
        "eval-with-batch",
        "batch-statistics-in-eval",
        "mean, var = self.running_mean, self.running_var",
        "mean = wide.mean((0, 2, 3)); var = ((wide - mean.reshape(shape)) ** 2).mean((0, 2, 3))",
    ),
    _bin(
        "numerics",
        "difference-of-squares",
        "cancellation",
        "var = (centred * centred).mean((0, 2, 3))",
        "var = (wide * wide).mean((0, 2, 3)) - mean * mean",
    ),
    _bin(
        "layout",
        "broadcasts-channels",
        "wrong-channels-accepted",
        "x.ndim != 4 or x.shape[1] != self.num_features",
        "x.ndim != 4",
    ),
)
