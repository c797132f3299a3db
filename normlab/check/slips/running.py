"""Wrong updates of the running statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normlab.check.oracle import Array
from normlab.check.slips.base import StateSlip, Update

RM = "running_mean = (1 - m) * running_mean + m * mean"
RV = "running_var = (1 - m) * running_var + m * var"
RVU = "running_var = (1 - m) * running_var + m * var * n / (n - 1)"


def _mean_slip(cause: str, sentence: str, fn: Callable[[Update], Array], formula: str = RM) -> StateSlip:
    return StateSlip(cause, sentence, formula, of="mean", mean=fn)


def _var_slip(cause: str, sentence: str, fn: Callable[[Update], Array], formula: str = RV) -> StateSlip:
    return StateSlip(cause, sentence, formula, of="var", var=fn)


def _both_slip(cause: str, sentence: str, mean: Callable[[Update], Array], var: Callable[[Update], Array]) -> StateSlip:
    return StateSlip(cause, sentence, RM + "; " + RV, mean=mean, var=var)


STATE: tuple[StateSlip, ...] = (
    _both_slip(
        "running-not-updated",
        "the running statistics are not updated in training",
        lambda u: u.old_mean,
        lambda u: u.old_var,
    ),
    _both_slip(
        "momentum-swapped",
        "momentum is applied the wrong way round: it weighs the old value where it must weigh the new one, "
        "or the reverse",
        lambda u: u.blend(u.old_mean, u.mean, 1 - u.m),
        lambda u: u.blend(u.old_var, u.stored_var, 1 - u.m),
    ),
    _both_slip(
        "momentum-missing",
        "the running statistics are overwritten by the last batch's: momentum is missing",
        lambda u: u.mean,
        lambda u: u.stored_var,
    ),
    _both_slip(
        "running-accumulates",
        "the new statistics are added without shrinking the old ones by 1 - m",
        lambda u: u.old_mean + u.m * u.mean,
        lambda u: u.old_var + u.m * u.stored_var,
    ),
    _both_slip(
        "running-unscaled",
        "the new statistics are added in full: their factor m is missing",
        lambda u: (1 - u.m) * u.old_mean + u.mean,
        lambda u: (1 - u.m) * u.old_var + u.stored_var,
    ),
    _both_slip(
        "running-updated-twice",
        "the running statistics are updated twice in one step",
        lambda u: u.blend(u.blend(u.old_mean, u.mean), u.mean),
        lambda u: u.blend(u.blend(u.old_var, u.stored_var), u.stored_var),
    ),
    _both_slip(
        "running-swapped",
        "running mean and running variance are exchanged",
        lambda u: u.blend(u.old_mean, u.stored_var),
        lambda u: u.blend(u.old_var, u.mean),
    ),
    _both_slip(
        "running-first-sample",
        "the running statistics see the first sample alone",
        lambda u: u.blend(u.old_mean, u.case.recipe.to_grid(u.case.x)[0].mean(axis=2).reshape(-1)),
        lambda u: u.blend(u.old_var, u.case.recipe.to_grid(u.case.x)[0].var(axis=2).reshape(-1)),
    ),
    _var_slip(
        "running-var-biased",
        "running_var is the biased variance: torch stores the unbiased one",
        lambda u: u.blend(u.old_var, u.var),
        RVU,
    ),
    _var_slip(
        "running-var-unbiased",
        "running_var is the unbiased variance: this dialect stores the biased one",
        lambda u: u.blend(u.old_var, u.var * u.count / (u.count - 1)),
    ),
    _var_slip(
        "running-var-correction-inverted",
        "the correction of running_var is upside down: (n - 1) / n in place of n / (n - 1)",
        lambda u: u.blend(u.old_var, u.var * (u.count - 1) / u.count),
        RVU,
    ),
    _var_slip(
        "running-var-count",
        "running_var is corrected with the batch size as n; n counts samples x positions",
        lambda u: u.blend(u.old_var, u.var * u.case.x.shape[0] / (u.case.x.shape[0] - 1)),
        RVU,
    ),
    _var_slip(
        "running-var-is-std",
        "running_var holds the standard deviation",
        lambda u: u.blend(u.old_var, np.sqrt(u.stored_var)),
    ),
    _var_slip(
        "running-var-is-std",
        "running_var holds the standard deviation sqrt(var + eps)",
        lambda u: u.blend(u.old_var, np.sqrt(u.var + u.case.recipe.eps)),
    ),
    _var_slip(
        "running-var-with-eps",
        "running_var has eps added to it; eps belongs to the square root alone",
        lambda u: u.blend(u.old_var, u.stored_var + u.case.recipe.eps),
    ),
    _var_slip(
        "running-var-with-eps",
        "running_var has eps added to it; eps belongs to the square root alone",
        lambda u: u.blend(u.old_var, u.var + u.case.recipe.eps),
    ),
    _var_slip(
        "running-var-is-inverse-std",
        "running_var holds 1 / sqrt(var + eps), the value that kernels save for the backward pass",
        lambda u: u.blend(u.old_var, 1 / np.sqrt(u.var + u.case.recipe.eps)),
    ),
    _var_slip("running-var-not-updated", "running_var is not updated in training", lambda u: u.old_var),
    _var_slip("running-var-overwritten", "running_var is overwritten by the last batch's", lambda u: u.stored_var),
    _var_slip(
        "momentum-swapped-var",
        "momentum is applied the wrong way round to running_var",
        lambda u: u.blend(u.old_var, u.stored_var, 1 - u.m),
    ),
    _var_slip(
        "running-var-around-running-mean",
        "running_var takes the deviations from the running mean; it takes them from the batch's mean",
        lambda u: u.blend(u.old_var, u.var + (u.mean - u.old_mean) ** 2),
    ),
    _var_slip(
        "running-var-around-running-mean",
        "running_var takes the deviations from the new running mean; it takes them from the batch's mean",
        lambda u: u.blend(u.old_var, u.var + (u.mean - u.blend(u.old_mean, u.mean)) ** 2),
    ),
    _var_slip(
        "running-var-second-moment",
        "running_var holds the mean of x^2: the mean is not taken off",
        lambda u: u.blend(u.old_var, u.var + u.mean**2),
    ),
    _mean_slip("running-mean-not-updated", "running_mean is not updated in training", lambda u: u.old_mean),
    _mean_slip("running-mean-overwritten", "running_mean is overwritten by the last batch's", lambda u: u.mean),
    _mean_slip(
        "momentum-swapped-mean",
        "momentum is applied the wrong way round to running_mean",
        lambda u: u.blend(u.old_mean, u.mean, 1 - u.m),
    ),
    _mean_slip(
        "running-mean-of-output",
        "running_mean averages the normalized values: it only decays",
        lambda u: u.blend(u.old_mean, 0 * u.mean),
    ),
    _mean_slip(
        "running-mean-sum",
        "running_mean takes the sum over the batch; it takes the mean",
        lambda u: u.blend(u.old_mean, u.mean * u.count),
    ),
    *(
        _both_slip(
            "momentum-ignored",
            f"the momentum that was asked for is ignored: {value:g} of the new batch is built in",
            lambda u, value=value: u.blend(u.old_mean, u.mean, value),  # type: ignore[misc]
            lambda u, value=value: u.blend(u.old_var, u.stored_var, value),  # type: ignore[misc]
        )
        for value in (0.1, 0.01, 0.001, 0.9, 0.99)
    ),
)
