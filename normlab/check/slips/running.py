"""Wrong updates of the running statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normlab.check.oracle import Array
from normlab.check.slips.base import Blend, StateSlip, Update
from normlab.check.slips.moved import cut_rows

RM = "running_mean = (1 - m) * running_mean + m * mean"
RV = "running_var = (1 - m) * running_var + m * var"
RVU = "running_var = (1 - m) * running_var + m * var * n / (n - 1)"


def _mean_slip(cause: str, sentence: str, fn: Callable[[Update], Array]) -> StateSlip:
    return StateSlip(cause, sentence, RM, mean=fn)


def _var_slip(cause: str, sentence: str, fn: Callable[[Update], Array], formula: str = RV) -> StateSlip:
    return StateSlip(cause, sentence, formula, var=fn)


def _both_slip(cause: str, sentence: str, mean: Callable[[Update], Array], var: Callable[[Update], Array]) -> StateSlip:
    return StateSlip(cause, sentence, RM + "; " + RV, mean=mean, var=var)


def _blend(cause: str, sentence: str, fn: Blend) -> StateSlip:
    return StateSlip(cause, sentence, RM + "; " + RV, blend_mean=fn, blend_var=fn)


def _blend_mean(cause: str, sentence: str, fn: Blend) -> StateSlip:
    return StateSlip(cause, sentence, RM, blend_mean=fn)


def _blend_var(cause: str, sentence: str, fn: Blend) -> StateSlip:
    return StateSlip(cause, sentence, RV, blend_var=fn)


def _blend_twice(u: Update, old: Array, new: Array) -> Array:
    return u.blend(u.blend(old, new), new)


def _reversed(u: Update, old: Array, new: Array) -> Array:
    return u.blend(old, new, 1 - u.m)


def _rows(u: Update) -> Array:
    return cut_rows(u.case.x, u.case.recipe.channels)


STATE: tuple[StateSlip, ...] = (
    _blend(
        "running-not-updated",
        "the running statistics are not updated in training",
        lambda u, old, new: old,
    ),
    _blend(
        "momentum-swapped",
        "momentum is applied the wrong way round: it weighs the old value where it must weigh the new one, "
        "or the reverse",
        _reversed,
    ),
    _blend(
        "momentum-missing",
        "the running statistics are overwritten by the last batch's: momentum is missing",
        lambda u, old, new: new,
    ),
    _blend(
        "running-accumulates",
        "the new statistics are added without shrinking the old ones by 1 - m",
        lambda u, old, new: old + u.m * new,
    ),
    _blend(
        "running-subtracts",
        "the new statistics are subtracted",
        lambda u, old, new: (1 - u.m) * old - u.m * new,
    ),
    _blend(
        "running-unscaled",
        "the new statistics are added in full: their factor m is missing",
        lambda u, old, new: (1 - u.m) * old + new,
    ),
    *(
        blend(
            f"running{of}-one-factor",
            f"both terms of {what} have the factor {name}; they have m and 1 - m, which add up to one",
            lambda u, old, new, factor=factor: factor(u.m) * (old + new),  # type: ignore[misc]
        )
        for name, factor in (("m", lambda m: m), ("1 - m", lambda m: 1 - m))
        for blend, of, what in (
            (_blend, "", "the running statistics"),
            (_blend_mean, "-mean", "running_mean"),
            (_blend_var, "-var", "running_var"),
        )
    ),
    _blend("running-updated-twice", "the running statistics are updated twice in one step", _blend_twice),
    *(
        _both_slip("running-swapped", "running mean and running variance are exchanged", mean, var)
        for mean in (lambda u: u.stored_var, lambda u: u.var)
        for var in (lambda u: u.mean, lambda u: u.mean * u.count / max(u.count - 1, 1))
    ),
    _both_slip(
        "running-axes-not-moved",
        "the running statistics are those of rows that are cut without moving the channel axis to the end first",
        lambda u: _rows(u).mean(axis=0),
        lambda u: _rows(u).var(axis=0),
    ),
    _both_slip(
        "running-first-sample",
        "the running statistics see the first sample alone",
        lambda u: u.case.recipe.to_grid(u.case.x)[0].mean(axis=2).reshape(-1),
        lambda u: u.case.recipe.to_grid(u.case.x)[0].var(axis=2).reshape(-1),
    ),
    _var_slip(
        "running-var-biased",
        "running_var is the biased variance: torch stores the unbiased one",
        lambda u: u.var,
        RVU,
    ),
    _var_slip(
        "running-var-unbiased",
        "running_var is the unbiased variance: this dialect stores the biased one",
        lambda u: u.var * u.count / (u.count - 1),
    ),
    _var_slip(
        "running-var-correction-inverted",
        "the correction of running_var is upside down: (n - 1) / n in place of n / (n - 1)",
        lambda u: u.var * (u.count - 1) / u.count,
        RVU,
    ),
    _var_slip(
        "running-var-count",
        "running_var is corrected with the batch size as n; n counts samples x positions",
        lambda u: u.var * u.case.x.shape[0] / (u.case.x.shape[0] - 1),
        RVU,
    ),
    *(
        _var_slip("running-var-is-std", "running_var holds the standard deviation", deviation)
        for deviation in (
            lambda u: np.sqrt(u.stored_var),
            lambda u: np.sqrt(u.var),
            lambda u: np.sqrt(u.var) * u.count / max(u.count - 1, 1),
        )
    ),
    _var_slip(
        "running-var-is-std",
        "running_var holds the standard deviation sqrt(var + eps)",
        lambda u: np.sqrt(u.var + u.case.recipe.eps),
    ),
    _var_slip(
        "running-var-with-eps",
        "running_var has eps added to it; eps belongs to the square root alone",
        lambda u: u.stored_var + u.case.recipe.eps,
    ),
    _var_slip(
        "running-var-with-eps",
        "running_var has eps added to it; eps belongs to the square root alone",
        lambda u: u.var + u.case.recipe.eps,
    ),
    _var_slip(
        "running-var-is-inverse-std",
        "running_var holds 1 / sqrt(var + eps), the value that kernels save for the backward pass",
        lambda u: 1 / np.sqrt(u.var + u.case.recipe.eps),
    ),
    _blend_var("running-var-not-updated", "running_var is not updated in training", lambda u, old, new: old),
    _blend_var("running-var-overwritten", "running_var is overwritten by the last batch's", lambda u, old, new: new),
    _blend_var("momentum-swapped-var", "momentum is applied the wrong way round to running_var", _reversed),
    _blend_var(
        "running-var-unscaled",
        "the new variance is added in full to running_var: its factor m is missing",
        lambda u, old, new: (1 - u.m) * old + new,
    ),
    _blend_var(
        "running-var-accumulates",
        "the new variance is added to running_var without shrinking the old one by 1 - m",
        lambda u, old, new: old + u.m * new,
    ),
    _var_slip(
        "running-var-around-running-mean",
        "running_var takes the deviations from the running mean; it takes them from the batch's mean",
        lambda u: u.var + (u.mean - u.old_mean) ** 2,
    ),
    _var_slip(
        "running-var-around-running-mean",
        "running_var takes the deviations from the new running mean; it takes them from the batch's mean",
        lambda u: u.var + (u.mean - u.blend(u.old_mean, u.mean)) ** 2,
    ),
    _var_slip(
        "running-var-second-moment",
        "running_var holds the mean of x^2: the mean is not taken off",
        lambda u: u.var + u.mean**2,
    ),
    _blend_mean("running-mean-not-updated", "running_mean is not updated in training", lambda u, old, new: old),
    _blend_mean("running-mean-overwritten", "running_mean is overwritten by the last batch's", lambda u, old, new: new),
    _blend_mean(
        "running-mean-unscaled",
        "the new mean is added in full to running_mean: its factor m is missing",
        lambda u, old, new: (1 - u.m) * old + new,
    ),
    _blend_mean(
        "running-mean-accumulates",
        "the new mean is added to running_mean without shrinking the old one by 1 - m",
        lambda u, old, new: old + u.m * new,
    ),
    _blend_mean("momentum-swapped-mean", "momentum is applied the wrong way round to running_mean", _reversed),
    _mean_slip(
        "running-mean-of-output",
        "running_mean averages the normalized values: it only decays",
        lambda u: 0 * u.mean,
    ),
    _mean_slip(
        "running-mean-sum",
        "running_mean takes the sum over the batch; it takes the mean",
        lambda u: u.mean * u.count,
    ),
    *(
        _blend(
            "momentum-ignored",
            f"the momentum that was asked for is ignored: {value:g} of the new batch is built in",
            lambda u, old, new, value=value: u.blend(old, new, value),  # type: ignore[misc]
        )
        for value in (0.1, 0.01, 0.001, 0.9, 0.99)
    ),
)
