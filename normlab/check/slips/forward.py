"""Wrong outputs: eps, divisors, axes, groups, weight and bias, the gate, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normlab.check.oracle import KINDS, Array, Case, Pass, Scale, Standardize, forward, mixed, updated_running
from normlab.check.slips.base import BIN, CENTRING, MIX, RMS_Y, ForwardSlip, Y


def _with_weights(case: Case, weight: Array | None, bias: Array | None) -> Array:
    return forward(replace(case, weight=weight, bias=bias))


def _channel_repeats_group(values: Array | None, case: Case) -> Array | None:
    """The parameter as if its first G entries were one per group."""
    if values is None:
        return None
    groups = case.recipe.group_count
    return np.repeat(values[:groups], values.size // groups)


def _interleaved(case: Case) -> Array:
    """Groups of every G-th channel in place of neighbouring ones."""
    groups, channels = case.recipe.group_count, case.recipe.channels
    order = np.arange(channels).reshape(channels // groups, groups).T.ravel()
    shuffled = np.take(case.x, order, axis=case.recipe.channel_axis)
    moved = replace(
        case,
        x=shuffled,
        weight=None if case.weight is None else case.weight[order],
        bias=None if case.bias is None else case.bias[order],
    )
    return np.take(forward(moved), np.argsort(order), axis=case.recipe.channel_axis)


def _size_for_count(case: Case) -> Array:
    recipe = replace(case.recipe, groups=case.recipe.channels // case.recipe.groups)
    return forward(replace(case, recipe=recipe))


def _memory_mixed(case: Case) -> Array:
    """Reshaped to (G, N * K, S) or the like without moving axes: values of different samples are pooled."""
    n, g, k, s = case.recipe.to_grid(case.x).shape
    flat = case.recipe.to_grid(case.x).reshape(n * k * s, g, 1, 1)
    wrong = replace(case, x=flat.reshape(-1, g), recipe=replace(case.recipe, channel_axis=1))
    xhat = mixed(replace(wrong, weight=None, bias=None)).reshape(n, g, k, s)
    y = case.parameter("weight", 1.0) * xhat + case.parameter("bias", 0.0)
    return case.recipe.from_grid(y, case.x.shape)


def _spatial_count_only_n(p: Pass) -> Array:
    factor = p.x.shape[2] * p.x.shape[3]
    return (p.x - p.mean * factor) / np.sqrt(p.pool((p.x - p.mean * factor) ** 2) * factor + p.eps)


def _layer(over: str, trailing: int) -> Callable[[Case], Array]:
    """A layer or RMS norm that pools over other axes, with its parameters still on the right ones."""

    def predict(case: Case) -> Array:
        bare = replace(case, weight=None, bias=None, recipe=replace(case.recipe, over=over, trailing=trailing))
        if over == "trailing" and trailing > case.x.ndim:
            return np.full(case.x.shape, np.nan)
        xhat = case.recipe.to_grid(forward(bare))
        y = case.parameter("weight", 1.0) * xhat + case.parameter("bias", 0.0)
        return case.recipe.from_grid(y, case.x.shape)

    return predict


def _standardize(
    cause: str, sentence: str, fn: Standardize, kinds: tuple[str, ...] = KINDS, formula: str = Y, running: bool = False
) -> ForwardSlip:
    return ForwardSlip(cause, sentence, formula, kinds, standardize=fn, only_running=running)


def _scale(cause: str, sentence: str, fn: Scale, kinds: tuple[str, ...] = KINDS, formula: str = Y) -> ForwardSlip:
    return ForwardSlip(cause, sentence, formula, kinds, scale=fn)


def _axes(cause: str, sentence: str, axes: tuple[int, ...], kinds: tuple[str, ...], formula: str) -> ForwardSlip:
    return _standardize(cause, sentence, lambda p: p.over(*axes).xhat, kinds, formula)


def _both(batch_slip: bool) -> Callable[[Case], Array]:
    """A batch-instance norm of which one half alone is unbiased."""

    def predict(case: Case) -> Array:
        passes = case.passes()
        halves = [p.xhat for p in passes]
        i = 0 if batch_slip else 1
        p = passes[i]
        halves[i] = p.centred / np.sqrt(p.var * p.count / (p.count - 1) + p.eps)
        gate = case.parameter("gate", 1.0)
        xhat = gate * halves[0] + (1 - gate) * halves[1]
        y = case.parameter("weight", 1.0) * xhat + case.parameter("bias", 0.0)
        return case.recipe.from_grid(y, case.x.shape)

    return predict


FORWARD: tuple[ForwardSlip, ...] = (
    _standardize(
        "eps-outside-root",
        "eps is added outside the square root",
        lambda p: p.centred / (np.sqrt(p.var) + p.eps),
    ),
    _standardize(
        "eps-missing",
        "eps is missing: the variance is used without it",
        lambda p: p.centred / np.sqrt(np.maximum(p.var, 1e-300)),
    ),
    _standardize(
        "eps-clamp",
        "eps is used as a floor of the variance, max(var, eps), in place of being added",
        lambda p: p.centred / np.sqrt(np.maximum(p.var, p.eps)),
    ),
    _standardize(
        "eps-squared",
        "eps is squared before it is added to the variance",
        lambda p: p.centred / np.sqrt(p.var + p.eps**2),
    ),
    _standardize(
        "eps-twice",
        "eps is added twice",
        lambda p: p.centred / np.sqrt(p.var + 2 * p.eps),
    ),
    _standardize(
        "eps-inside-and-outside",
        "eps is added both inside and outside the square root",
        lambda p: p.centred / (np.sqrt(p.var + p.eps) + p.eps),
    ),
    *(
        _standardize(
            "eps-ignored",
            f"the eps that was asked for is ignored: {value:g} is built in",
            lambda p, value=value: p.centred / np.sqrt(p.var + value),  # type: ignore[misc]
        )
        for value in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
    ),
    _standardize(
        "root-missing",
        "the square root is missing: the input is divided by the variance",
        lambda p: p.centred / (p.var + p.eps),
    ),
    _standardize(
        "running-var-corrected-again",
        "in evaluation the running variance is corrected by n / (n - 1) although it is used as it is stored",
        lambda p: p.centred / np.sqrt(p.var * _batch_count(p) / (_batch_count(p) - 1) + p.eps),
        running=True,
    ),
    _standardize(
        "unbiased-normalization",
        "the normalization divides by the unbiased variance (n - 1); every norm normalizes with the biased one (n)",
        lambda p: p.centred / np.sqrt(p.var * p.count / max(p.count - 1, 1) + p.eps),
    ),
    _standardize(
        "unbiased-normalization",
        "the input is divided by the unbiased standard deviation (n - 1) plus eps: the biased one (n) belongs there, "
        "and eps inside the root",
        lambda p: p.centred / (np.sqrt(p.var * p.count / max(p.count - 1, 1)) + p.eps),
    ),
    ForwardSlip(
        "unbiased-normalization",
        "the instance half normalizes with the unbiased variance (n - 1) where the biased one (n) belongs",
        Y,
        BIN,
        whole=_both(False),
    ),
    ForwardSlip(
        "unbiased-normalization",
        "the batch half normalizes with the unbiased variance (n - 1) where the biased one (n) belongs",
        Y,
        BIN,
        whole=_both(True),
    ),
    _standardize(
        "mean-not-subtracted",
        "the mean is not subtracted",
        lambda p: p.x / p.std,
        CENTRING,
    ),
    _standardize(
        "second-moment-for-variance",
        "the mean of x^2 is used as the variance: the mean is not taken off before squaring",
        lambda p: p.centred / np.sqrt(p.pool(p.x**2) + p.eps),
        CENTRING,
    ),
    _standardize(
        "layer-norm-for-rms",
        "the mean is subtracted: that is layer norm, RMS norm does not centre",
        lambda p: (p.x - p.pool(p.x)) / np.sqrt(p.pool((p.x - p.pool(p.x)) ** 2) + p.eps),
        ("rms",),
        RMS_Y,
    ),
    _standardize(
        "variance-for-rms",
        "the input is divided by the standard deviation: RMS norm divides by the root of the mean of x^2",
        lambda p: p.x / np.sqrt(p.pool((p.x - p.pool(p.x)) ** 2) + p.eps),
        ("rms",),
        RMS_Y,
    ),
    _standardize(
        "sum-for-mean",
        "squares are summed where their mean belongs: the division by n is missing",
        lambda p: p.centred / np.sqrt(p.pool(p.centred**2) * p.count + p.eps),
    ),
    _standardize(
        "absolute-deviation",
        "the mean absolute deviation is used as the standard deviation",
        lambda p: p.centred / np.sqrt(p.pool(np.abs(p.centred)) ** 2 + p.eps),
    ),
    _standardize(
        "positions-not-counted",
        "sums run over the positions too, but are divided by the number of samples alone",
        _spatial_count_only_n,
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
    ForwardSlip(
        "pools-instance-for-batch",
        "the batch half uses the instance's statistics",
        MIX,
        BIN,
        mix=lambda gate, batch, instance: instance,
    ),
    ForwardSlip(
        "pools-channels-only",
        "statistics are pooled over the channels alone, separately at every position",
        "layer norm: mean and var over all of a sample's features",
        ("layer", "rms"),
        whole=_layer("channels", 1),
    ),
    ForwardSlip(
        "pools-sample",
        "statistics are pooled over all of a sample's axes in place of the last one",
        "mean and var over the last axes, as many as the parameters have",
        ("layer", "rms"),
        whole=_layer("sample", 1),
    ),
    ForwardSlip(
        "pools-last-axis",
        "statistics are pooled over the last axis alone",
        "mean and var over all the axes that are normalized",
        ("layer", "rms"),
        whole=_layer("trailing", 1),
    ),
    ForwardSlip(
        "pools-too-many-axes",
        "statistics are pooled over one axis too many",
        "mean and var over the last axes, as many as the parameters have",
        ("layer", "rms"),
        whole=_layer("trailing", 2),
    ),
    ForwardSlip(
        "groups-interleaved",
        "a group takes every G-th channel; it must take neighbouring channels",
        "x.reshape(N, G, C // G, *): channels 0 .. C/G - 1 are group 0",
        ("group",),
        whole=_interleaved,
    ),
    ForwardSlip(
        "group-size-for-count",
        "the number of groups is used as the number of channels per group",
        "G groups of C / G channels",
        ("group",),
        whole=_size_for_count,
    ),
    ForwardSlip(
        "axes-not-moved",
        "the input is reshaped to (N * H * W, C) without moving the channel axis to the end first",
        "x.transpose(0, 2, 3, 1).reshape(-1, C)",
        ("batch",),
        whole=_memory_mixed,
    ),
    # --- weight, bias, gate ---
    ForwardSlip(
        "weight-per-group",
        "weight and bias are applied one per group; there is one per channel",
        Y,
        ("group",),
        whole=lambda c: _with_weights(c, _channel_repeats_group(c.weight, c), _channel_repeats_group(c.bias, c)),
    ),
    _scale("weight-missing", "the weight (gamma) is not applied", lambda h, w, b: h + b),
    _scale("bias-missing", "the bias (beta) is not applied", lambda h, w, b: w * h, CENTRING),
    _scale("affine-missing", "weight and bias are not applied", lambda h, w, b: h + 0 * b),
    _scale(
        "bias-before-weight",
        "the bias is added before the weight multiplies, so that it is scaled too",
        lambda h, w, b: w * (h + b),
    ),
    _scale("weight-bias-swapped", "weight and bias are exchanged", lambda h, w, b: b * h + w),
    _scale("weight-plus-one", "the weight is applied as 1 + weight", lambda h, w, b: (1 + w) * h + b),
    _scale("weight-twice", "the weight is applied twice", lambda h, w, b: w * w * h + b),
    _scale("weight-absolute", "the weight's sign is lost", lambda h, w, b: np.abs(w) * h + b),
    _scale("bias-subtracted", "the bias is subtracted", lambda h, w, b: w * h - b),
    ForwardSlip(
        "gate-swapped",
        "the gate multiplies the wrong half: gate 1 must mean batch norm",
        MIX,
        BIN,
        mix=lambda r, b, i: r * i + (1 - r) * b,
    ),
    ForwardSlip("gate-ignored", "the gate is not applied", MIX, BIN, mix=lambda r, b, i: b),
    ForwardSlip("gate-ignored", "the gate is not applied", MIX, BIN, mix=lambda r, b, i: (b + i) / 2),
    ForwardSlip(
        "gate-half-missing",
        "the instance half is not weighted by 1 - gate",
        MIX,
        BIN,
        mix=lambda r, b, i: r * b + i,
    ),
    ForwardSlip(
        "gate-sigmoid",
        "the gate goes through a sigmoid; it is used as it is and clamped to [0, 1] after each step",
        MIX,
        BIN,
        mix=lambda r, b, i: b / (1 + np.exp(-r)) + i * (1 - 1 / (1 + np.exp(-r))),
    ),
    ForwardSlip(
        "gate-not-per-channel",
        "one gate is used for all channels; there is one per channel",
        MIX,
        BIN,
        mix=lambda r, b, i: r.mean() * b + (1 - r.mean()) * i,
    ),
    # --- evaluation ---
    ForwardSlip(
        "batch-statistics-in-eval",
        "evaluation uses the batch's statistics; it must use the running ones",
        "evaluation: y = weight * (x - running_mean) / sqrt(running_var + eps) + bias",
        ("batch", "batch-instance", "instance"),
        whole=lambda c: forward(replace(c, running=None)),
        only_running=True,
    ),
    _standardize(
        "running-var-as-std",
        "evaluation divides by the running variance as if it were the standard deviation",
        lambda p: p.centred / p.var,
        running=True,
    ),
    _standardize(
        "batch-var-in-eval",
        "evaluation takes the running mean but the batch's variance",
        lambda p: p.centred / np.sqrt(p.pool((p.x - p.pool(p.x)) ** 2) + p.eps),
        running=True,
    ),
    _standardize(
        "batch-mean-in-eval",
        "evaluation takes the running variance but the batch's mean",
        lambda p: (p.x - p.pool(p.x)) / p.std,
        running=True,
    ),
    ForwardSlip(
        "running-in-training",
        "training uses the running statistics; it must use the batch's",
        Y,
        ("batch", "batch-instance"),
        whole=lambda c: forward(replace(c, training=False)) if c.running is not None else np.full(c.x.shape, np.nan),
    ),
    ForwardSlip(
        "running-in-training",
        "training uses the running statistics, just updated; it must use the batch's",
        Y,
        ("batch", "batch-instance"),
        whole=lambda c: (
            forward(replace(c, training=False, running=updated_running(c)))
            if c.running is not None
            else np.full(c.x.shape, np.nan)
        ),
    ),
)


def _batch_count(p: Pass) -> int:
    return int(np.prod([p.x.shape[a] for a in p.axes]))
