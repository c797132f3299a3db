"""Wrong outputs: eps, divisors, axes, groups, weight and bias, the gate, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.oracle import KINDS, Array, Case, Pass, Stages, bare, scaled, updated_running
from normlab.check.slips.base import BIN, CENTRING, MIX, RMS_Y, ForwardSlip, Y
from normlab.check.slips.moved import MOVED


def _channel_repeats_group(values: Array | None, case: Case) -> Array | None:
    """The parameter as if its first G entries were one per group."""
    if values is None:
        return None
    groups = case.recipe.group_count
    return np.repeat(values[:groups], values.size // groups)


def _order(case: Case) -> NDArray[Any]:
    """Every G-th channel in place of neighbouring ones."""
    groups, channels = case.recipe.group_count, case.recipe.channels
    return np.arange(channels).reshape(channels // groups, groups).T.ravel()


def _interleave(case: Case) -> Case:
    order = _order(case)
    return replace(
        case,
        x=np.take(case.x, order, axis=case.recipe.channel_axis),
        weight=None if case.weight is None else case.weight[order],
        bias=None if case.bias is None else case.bias[order],
    )


def _size_for_count(case: Case) -> Case:
    return replace(case, recipe=replace(case.recipe, groups=case.recipe.channels // case.recipe.groups))


def _samples_counted(p: Pass) -> Array:
    """Sums over the positions too, divided by the number of samples alone."""
    factor = p.x.shape[2] * p.x.shape[3]
    centred = p.x - p.mean * factor
    return centred / np.sqrt(p.pool(centred**2) * factor + p.eps)


def _over_other_axes(over: str, trailing: int) -> Stages:
    """A layer or RMS norm that pools over other axes, with its parameters still on the right ones."""

    def inner(case: Case) -> Case:
        return replace(bare(case), recipe=replace(case.recipe, over=over, trailing=trailing))

    def outer(case: Case, xhat: Array) -> Array:
        if over == "trailing" and trailing > case.x.ndim:
            return np.full(case.x.shape, np.nan)
        return scaled(case, case.recipe.to_grid(xhat))

    return Stages(inner=inner, outer=outer)


Formula = Callable[[Pass], Array]


def _stage(
    stage: str,
    cause: str,
    sentence: str,
    fn: Callable[..., Array],
    kinds: tuple[str, ...] = KINDS,
    formula: str = Y,
    running: bool = False,
) -> ForwardSlip:
    return ForwardSlip(cause, sentence, formula, kinds, Stages(**{stage: fn}), running)  # type: ignore[arg-type]


def _divisor(cause: str, sentence: str, fn: Formula, running: bool = False) -> ForwardSlip:
    return _stage("deviation", cause, sentence, fn, running=running)


def _scale(cause: str, sentence: str, fn: Callable[[Array, Array, Array], Array]) -> ForwardSlip:
    return _stage("scale", cause, sentence, fn)


def _mix(cause: str, sentence: str, fn: Callable[..., Array]) -> ForwardSlip:
    return _stage("mix", cause, sentence, lambda r, b, i, case: fn(r, b, i), BIN, MIX)


def _axes(cause: str, sentence: str, axes: tuple[int, ...], kinds: tuple[str, ...], formula: str) -> ForwardSlip:
    """Axes of the grid; 3 stands for all positions."""

    def split(spatial: int) -> tuple[int, ...]:
        return tuple(a for a in axes if a < 3) + (tuple(range(3, 3 + spatial)) if 3 in axes else ())

    return ForwardSlip(cause, sentence, formula, kinds, Stages(axes=split))


def _unbiased(p: Pass) -> Array:
    return p.biased * p.count / max(p.count - 1, 1)


def _unbiased_half(which: int) -> Formula:
    """One half of a batch-instance norm alone is unbiased."""
    return lambda p: _unbiased(p) if (0 in p.axes) == (which == 0) and p.running is None else p.biased


PARTS = (("sample", (0,)), ("column", (-1,)), ("row", (3,)), ("position", (3, 4)), ("channel", (2,)))


def _parts_averaged(*axes: int, power: float = 1.0) -> Formula:
    """The variance within each part, averaged over the parts: their means' spread is lost. Axes of (N, G, K, *).

    What is averaged is the variance to this power: 0.5 is the standard deviation.
    """

    def spread(p: Pass) -> Array:
        split = p.x.reshape(*p.x.shape[:3], *p.spatial)
        kept = tuple(a for a in p.axes if a < 3) + (tuple(range(3, split.ndim)) if 3 in p.axes else ())
        averaged = tuple(a % split.ndim for a in axes if a < split.ndim)
        if p.running is not None or not set(averaged) < set(kept):
            return np.full((1, 1, 1, 1), np.nan)
        within = split.var(axis=tuple(a for a in kept if a not in averaged), keepdims=True)
        full = (within**power).mean(axis=averaged, keepdims=True) ** (1 / power)
        return full.reshape(*full.shape[:3], -1)

    return spread


def _halves(case: Case, fresh: bool) -> tuple[Pass, Pass]:
    """The batch's pass, with the statistics of the batch at hand where it is asked for afresh, and the instances'."""
    batch, instance = case.passes()
    return (batch.without_running() if fresh else batch), instance


def _in_evaluation(mix: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array, Array, Case], Array]:
    """A batch-instance norm whose instance half has batch statistics: of the batch at hand, in evaluation too."""

    def fn(gate: Array, batch: Array, instance: Array, case: Case) -> Array:
        return mix(gate, batch, case.passes()[0].without_running().xhat)

    return fn


FORWARD: tuple[ForwardSlip, ...] = (
    _stage(
        "spread",
        "running-var-corrected-again",
        "in evaluation the running variance is corrected by n / (n - 1) although it is used as it is stored",
        lambda p: p.biased * p.count / max(p.count - 1, 1),
        running=True,
    ),
    _stage(
        "spread",
        "unbiased-normalization",
        "the normalization divides by the unbiased variance (n - 1); every norm normalizes with the biased one (n)",
        _unbiased,
    ),
    _stage(
        "spread",
        "unbiased-normalization",
        "the instance half normalizes with the unbiased variance (n - 1) where the biased one (n) belongs",
        _unbiased_half(1),
        BIN,
    ),
    _stage(
        "spread",
        "unbiased-normalization",
        "the batch half normalizes with the unbiased variance (n - 1) where the biased one (n) belongs",
        _unbiased_half(0),
        BIN,
    ),
    _divisor(
        "eps-outside-root",
        "eps is added outside the square root",
        lambda p: np.sqrt(p.var) + p.eps,
    ),
    _divisor(
        "eps-missing",
        "eps is missing: the variance is used without it",
        lambda p: np.sqrt(np.maximum(p.var, 1e-300)),
    ),
    _divisor(
        "eps-clamp",
        "eps is used as a floor of the variance, max(var, eps), in place of being added",
        lambda p: np.sqrt(np.maximum(p.var, p.eps)),
    ),
    _divisor(
        "eps-squared",
        "eps is squared before it is added to the variance",
        lambda p: np.sqrt(p.var + p.eps**2),
    ),
    _divisor(
        "eps-twice",
        "eps is added twice",
        lambda p: np.sqrt(p.var + 2 * p.eps),
    ),
    _divisor(
        "eps-inside-and-outside",
        "eps is added both inside and outside the square root",
        lambda p: np.sqrt(p.var + p.eps) + p.eps,
    ),
    *(
        _divisor(
            "eps-ignored",
            f"the eps that was asked for is ignored: {value:g} is built in",
            lambda p, value=value: np.sqrt(p.var + value),  # type: ignore[misc]
        )
        for value in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
    ),
    _divisor(
        "root-missing",
        "the square root is missing: the input is divided by the variance",
        lambda p: p.var + p.eps,
    ),
    _stage("center", "mean-not-subtracted", "the mean is not subtracted", lambda p: p.x, CENTRING),
    _stage(
        "standardize",
        "mean-alone-divided",
        "only the mean is divided by the deviation: x - mean / sqrt(...) in place of (x - mean) / sqrt(...)",
        lambda p: p.x - p.mean / p.std,
        CENTRING,
    ),
    _stage("standardize", "deviation-missing", "the input is centred and not divided by anything", lambda p: p.centred),
    _stage(
        "standardize",
        "multiplied-by-deviation",
        "the input is multiplied by the standard deviation; it must be divided by it",
        lambda p: p.centred * p.std,
    ),
    _stage("center", "mean-added", "the mean is added; it must be subtracted", lambda p: p.x + p.mean, CENTRING),
    _stage(
        "spread",
        "second-moment-for-variance",
        "the mean of x^2 is used as the variance: the mean is not taken off before squaring",
        lambda p: p.pool(p.x**2),
        CENTRING,
    ),
    _stage(
        "center",
        "mean-subtracted-in-rms",
        "the mean is subtracted: RMS norm does not centre",
        lambda p: p.x - p.pool(p.x),
        ("rms",),
        RMS_Y,
    ),
    _stage(
        "spread",
        "variance-for-rms",
        "the input is divided by the standard deviation: RMS norm divides by the root of the mean of x^2",
        lambda p: p.pool((p.x - p.pool(p.x)) ** 2),
        ("rms",),
        RMS_Y,
    ),
    _stage(
        "mean",
        "layer-norm-for-rms",
        "the mean is subtracted: that is layer norm, RMS norm does not centre",
        lambda p: p.pool(p.x),
        ("rms",),
        RMS_Y,
    ),
    _stage(
        "mean",
        "rms-for-centred",
        "the mean is taken off nowhere: that is RMS norm",
        lambda p: np.zeros((1, 1, 1, 1)),
        CENTRING,
    ),
    _stage(
        "spread",
        "sum-for-mean",
        "squares are summed where their mean belongs: the division by n is missing",
        lambda p: p.biased * p.count,
        CENTRING,
    ),
    _stage(
        "spread",
        "sum-for-mean",
        "the L2 norm is used for the root mean square: squares are summed where their mean belongs, the division by n "
        "is missing",
        lambda p: p.biased * p.count,
        ("rms",),
        RMS_Y,
    ),
    *(
        _stage(
            "deviation",
            "sum-for-mean",
            "the L2 norm is used for the root mean square: squares are summed where their mean belongs, the division "
            f"by n is missing, and eps {does}",
            norm,
            ("rms",),
            RMS_Y,
        )
        for does, norm in (
            ("is added to the norm", lambda p: np.sqrt(p.biased * p.count) + p.eps),
            ("is its least value", lambda p: np.maximum(np.sqrt(p.biased * p.count), p.eps)),
            ("is left out", lambda p: np.sqrt(p.biased * p.count)),
        )
    ),
    _stage(
        "spread",
        "deviation-for-variance",
        "the standard deviation is used as the variance: its root is taken once more",
        lambda p: np.sqrt(p.biased),
    ),
    _divisor(
        "absolute-deviation",
        "the mean absolute deviation is used as the standard deviation",
        lambda p: p.pool(np.abs(p.centred)) + p.eps,
    ),
    _divisor(
        "absolute-deviation",
        "the mean absolute deviation is used as the standard deviation",
        lambda p: p.pool(np.abs(p.centred)),
    ),
    _stage(
        "spread",
        "absolute-deviation",
        "the mean absolute deviation, squared, is used as the variance",
        lambda p: p.pool(np.abs(p.x - p.mean)) ** 2,
    ),
    _stage(
        "spread",
        "absolute-deviation",
        "the mean absolute deviation is used as the variance",
        lambda p: p.pool(np.abs(p.x - p.mean)),
    ),
    *(
        _divisor(
            "absolute-deviation",
            "the mean absolute deviation is used as the standard deviation",
            lambda p, value=value: p.pool(np.abs(p.centred)) + value,  # type: ignore[misc]
        )
        for value in (1e-5, 1e-6, 1e-7, 1e-8)
    ),
    _stage(
        "mean",
        "pools-first-sample",
        "the mean is that of the first sample alone",
        lambda p: p.x[:1].mean(axis=tuple(a for a in p.axes if a), keepdims=True),
        ("batch", "batch-instance"),
    ),
    ForwardSlip(
        "pools-first-sample",
        "the statistics are those of the first sample alone",
        "batch norm: mean and var per channel, over the batch and all positions",
        ("batch",),
        Stages(
            mean=lambda p: p.x[:1].mean(axis=(0, 3), keepdims=True),
            spread=lambda p: p.running[1] if p.running is not None else p.x[:1].var(axis=(0, 3), keepdims=True),
        ),
    ),
    *(
        _stage(
            "spread",
            "variance-of-parts-averaged",
            f"the variance is an average of the variances within each {what}; those do not see how the means of the "
            "parts differ",
            _parts_averaged(*axes),
        )
        for what, axes in PARTS
    ),
    *(
        _stage(
            "spread",
            "deviation-of-parts-averaged",
            f"the standard deviation is an average of the standard deviations within each {what}; variances can be "
            "pooled, deviations cannot",
            _parts_averaged(*axes, power=0.5),
        )
        for what, axes in PARTS
    ),
    _stage(
        "standardize",
        "positions-not-counted",
        "sums run over the positions too, but are divided by the number of samples alone",
        _samples_counted,
        ("batch",),
    ),
    # --- pooled over the wrong values ---
    _axes(
        "pools-batch-only",
        "statistics are pooled over the batch axis alone, separately at every position",
        (0,),
        ("batch",),
        "batch norm: mean and var per channel, over the batch and all positions",
    ),
    _axes(
        "pools-instance",
        "statistics are taken per sample: that is instance norm",
        (2, 3),
        ("batch",),
        "batch norm: mean and var per channel, over the batch and all positions",
    ),
    _axes(
        "pools-everything",
        "one mean and variance are taken over the whole input",
        (0, 1, 2, 3),
        KINDS,
        "mean and var are taken per channel (batch), per sample and channel (instance), per sample (layer)",
    ),
    _axes(
        "pools-layer",
        "statistics are pooled over all channels of a sample: that is layer norm",
        (1, 2, 3),
        ("batch", "instance", "group"),
        "group norm: mean and var per sample and group of channels",
    ),
    _axes(
        "pools-batch",
        "statistics are pooled over the batch: that is batch norm's axis",
        (0, 2, 3),
        ("instance", "group", "layer"),
        "instance, group and layer norm: mean and var of each sample by itself",
    ),
    _axes(
        "pools-feature",
        "statistics are pooled per feature over the batch (axis 0 in place of the last axis)",
        (0, 3),
        ("layer", "rms"),
        "layer norm: mean and var of each sample over its features",
    ),
    _axes(
        "pools-instance",
        "statistics are taken per channel: that is instance norm",
        (3,),
        ("group", "layer", "rms"),
        "group norm: mean and var per sample and group of channels",
    ),
    _axes(
        "pools-channels-only",
        "statistics are pooled over the channels alone, separately at every position",
        (2,),
        ("group",),
        "group norm: mean and var over a group's channels and all positions",
    ),
    _mix("pools-instance-for-batch", "the batch half uses the instance's statistics", lambda gate, batch, inst: inst),
    ForwardSlip(
        "pools-channels-only",
        "statistics are pooled over the channels alone, separately at every position",
        "layer norm: mean and var over all of a sample's features",
        ("layer", "rms"),
        _over_other_axes("channels", 1),
    ),
    ForwardSlip(
        "pools-sample",
        "statistics are pooled over all of a sample's axes in place of the last one",
        "mean and var over the last axes, as many as the parameters have",
        ("layer", "rms"),
        _over_other_axes("sample", 1),
    ),
    ForwardSlip(
        "pools-last-axis",
        "statistics are pooled over the last axis alone",
        "mean and var over all the axes that are normalized",
        ("layer", "rms"),
        _over_other_axes("trailing", 1),
    ),
    ForwardSlip(
        "pools-too-many-axes",
        "statistics are pooled over one axis too many",
        "mean and var over the last axes, as many as the parameters have",
        ("layer", "rms"),
        _over_other_axes("trailing", 2),
    ),
    ForwardSlip(
        "groups-interleaved",
        "a group takes every G-th channel; it must take neighbouring channels",
        "x.reshape(N, G, C // G, *): channels 0 .. C/G - 1 are group 0",
        ("group",),
        Stages(inner=_interleave, outer=lambda c, y: np.take(y, np.argsort(_order(c)), axis=c.recipe.channel_axis)),
    ),
    ForwardSlip(
        "groups-interleaved",
        "a group takes every G-th channel; it must take neighbouring channels; the output is not brought back",
        "x.reshape(N, G, C // G, *): channels 0 .. C/G - 1 are group 0",
        ("group",),
        Stages(inner=lambda c: _interleave(bare(c)), outer=lambda c, y: scaled(c, c.recipe.to_grid(y))),
    ),
    ForwardSlip(
        "group-size-for-count",
        "the number of groups is used as the number of channels per group",
        "G groups of C / G channels",
        ("group",),
        Stages(inner=_size_for_count),
    ),
    *MOVED,
    # --- weight, bias, gate ---
    ForwardSlip(
        "weight-per-group",
        "weight and bias are applied one per group; there is one per channel",
        Y,
        ("group",),
        Stages(
            inner=lambda c: replace(
                c, weight=_channel_repeats_group(c.weight, c), bias=_channel_repeats_group(c.bias, c)
            )
        ),
    ),
    _stage("weigh", "weight-missing", "the weight (gamma) is not applied", lambda h, w: h),
    _stage("shift", "bias-missing", "the bias (beta) is not applied", lambda y, b: y, CENTRING),
    _scale("affine-missing", "weight and bias are not applied", lambda h, w, b: h + 0 * b),
    _scale(
        "bias-before-weight",
        "the bias is added before the weight multiplies, so that it is scaled too",
        lambda h, w, b: w * (h + b),
    ),
    _scale("weight-bias-swapped", "weight and bias are exchanged", lambda h, w, b: b * h + w),
    _stage("weigh", "weight-plus-one", "the weight is applied as 1 + weight", lambda h, w: (1 + w) * h),
    _stage("weigh", "weight-twice", "the weight is applied twice", lambda h, w: w * w * h),
    _stage("weigh", "weight-absolute", "the weight's sign is lost", lambda h, w: np.abs(w) * h),
    _stage("weigh", "weight-divides", "the input is divided by the weight", lambda h, w: h / w),
    _stage("weigh", "weight-sign", "the weight is applied with the wrong sign", lambda h, w: -w * h),
    _stage("shift", "bias-subtracted", "the bias is subtracted", lambda y, b: y - b, CENTRING),
    _stage("shift", "bias-twice", "the bias is added twice", lambda y, b: y + 2 * b, CENTRING),
    _stage(
        "mix",
        "batch-statistics-for-instance",
        "the instance half uses the batch's statistics",
        _in_evaluation(lambda gate, batch, fresh: gate * batch + (1 - gate) * fresh),
        BIN,
        MIX,
    ),
    *(
        _stage(
            "mix",
            "batch-statistics-for-instance",
            f"the instance half takes the batch's {what}",
            lambda gate, batch, _, case, half=half, fresh=fresh: (
                gate * batch + (1 - gate) * half(*_halves(case, fresh))
            ),
            BIN,
            MIX,
        )
        for what, half in (
            ("variance", lambda batch, instance: instance.centred / batch.std),
            ("mean", lambda batch, instance: (instance.x - batch.mean) / instance.std),
        )
        for fresh in (True, False)
    ),
    _mix(
        "gate-swapped",
        "the gate multiplies the wrong half: gate 1 must mean batch norm",
        lambda r, b, i: r * i + (1 - r) * b,
    ),
    _mix("gate-ignored", "the gate is not applied", lambda r, b, i: b + 0 * r),
    _mix("gate-ignored", "the gate is not applied", lambda r, b, i: (b + i) / 2),
    _mix(
        "gate-half-missing",
        "the instance half is not weighted by 1 - gate",
        lambda r, b, i: r * b + i,
    ),
    _mix(
        "gate-sigmoid",
        "the gate goes through a sigmoid; it is used as it is and clamped to [0, 1] after each step",
        lambda r, b, i: b / (1 + np.exp(-r)) + i * (1 - 1 / (1 + np.exp(-r))),
    ),
    _mix(
        "gate-not-per-channel",
        "one gate is used for all channels; there is one per channel",
        lambda r, b, i: r.mean() * b + (1 - r.mean()) * i,
    ),
    # --- evaluation ---
    ForwardSlip(
        "batch-statistics-in-eval",
        "evaluation uses the batch's statistics; it must use the running ones",
        "evaluation: y = weight * (x - running_mean) / sqrt(running_var + eps) + bias",
        ("batch", "batch-instance", "instance"),
        Stages(inner=lambda c: replace(c, running=None)),
        True,
    ),
    _divisor(
        "running-var-as-std",
        "evaluation divides by the running variance as if it were the standard deviation",
        lambda p: p.var,
        running=True,
    ),
    _stage(
        "spread",
        "batch-var-in-eval",
        "evaluation takes the running mean but the batch's variance",
        lambda p: p.pool((p.x - p.pool(p.x)) ** 2),
        running=True,
    ),
    _stage(
        "center",
        "batch-mean-in-eval",
        "evaluation takes the running variance but the batch's mean",
        lambda p: p.x - p.pool(p.x),
        running=True,
    ),
    ForwardSlip(
        "running-in-training",
        "training uses the running statistics; it must use the batch's",
        Y,
        ("batch", "batch-instance"),
        Stages(inner=lambda c: replace(c, training=c.running is None)),
    ),
    ForwardSlip(
        "running-in-training",
        "training uses the running statistics, just updated; it must use the batch's",
        Y,
        ("batch", "batch-instance"),
        Stages(inner=lambda c: c if c.running is None else replace(c, training=False, running=updated_running(c))),
    ),
)
