"""The library of wrong formulas: what people actually write, each with its name, in words, and the right one.

A slip replaces one stage of the oracle (oracle.py) with the formula that somebody wrote. Its prediction is
compared with what the layer really returned, so that a failing check can say *why* it fails. Two slips with the
same prediction everywhere would be one mistake with two names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from normlab.check.oracle import (
    KINDS,
    Array,
    Case,
    InputGradient,
    Mix,
    ParameterGradient,
    Pass,
    Scale,
    Standardize,
    batch_moments,
    forward,
    input_gradient,
    mixed,
    per_channel_sum,
    updated_running,
)

Y = "y = weight * (x - mean) / sqrt(var + eps) + bias"
DX = "dx = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps), g = weight * dy"
RMS_Y = "y = weight * x / sqrt(mean(x^2) + eps)"
MIX = "xhat = gate * xhat_batch + (1 - gate) * xhat_instance"
CENTRING = tuple(k for k in KINDS if k != "rms")
BIN = ("batch-instance",)


@dataclass(frozen=True)
class Slip:
    """A named wrong formula: `cause` is its identifier, `sentence` the words, `formula` the right formula."""

    cause: str
    sentence: str
    formula: str
    kinds: tuple[str, ...] = KINDS

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardSlip(Slip):
    standardize: Standardize | None = None
    scale: Scale | None = None
    mix: Mix | None = None
    whole: Callable[[Case], Array] | None = None
    only_running: bool = False

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        if self.whole is not None:
            return self.whole(case)
        stages = {"standardize": self.standardize, "scale": self.scale, "mix": self.mix}
        return forward(case, **{k: v for k, v in stages.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class GradientSlip(Slip):
    """A wrong gradient with respect to `of`: x, weight, bias or gate."""

    of: str = "x"
    dx: InputGradient | None = None
    whole: Callable[[Case, Array], Array] | None = None
    parameter: ParameterGradient | None = None

    def predict(self, case: Case, dy: Array | None = None) -> Array:
        assert dy is not None
        if self.whole is not None:
            return self.whole(case, dy)
        if self.dx is not None:
            return input_gradient(case, dy, self.dx)
        assert self.parameter is not None
        return self.parameter(case.recipe.to_grid(dy), case, mixed(case))


@dataclass(frozen=True)
class StateSlip(Slip):
    """A wrong update of one running statistic, `of` "mean" or "var"; or of both."""

    of: str = "both"
    mean: Callable[[Update], Array] | None = None
    var: Callable[[Update], Array] | None = None


@dataclass(frozen=True)
class Update:
    """What a training step has at hand when it updates the running statistics, (C,) arrays."""

    case: Case
    old_mean: Array
    old_var: Array
    mean: Array
    var: Array  # biased
    count: int
    m: float

    @classmethod
    def of(cls, case: Case) -> Update:
        assert case.running is not None
        mean, var, count = batch_moments(case)
        return cls(case, *case.running, mean, var, count, case.recipe.momentum)

    @property
    def stored_var(self) -> Array:
        """The batch variance as the dialect stores it."""
        unbiased = self.case.recipe.unbiased_running_var
        return self.var * self.count / max(self.count - 1, 1) if unbiased else self.var

    def blend(self, old: Array, new: Array, m: float | None = None) -> Array:
        m = self.m if m is None else m
        return (1 - m) * old + m * new


# --- forward ---------------------------------------------------------------------------------------------------


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


# --- gradients -------------------------------------------------------------------------------------------------


def _dx(cause: str, sentence: str, fn: InputGradient, kinds: tuple[str, ...] = KINDS) -> GradientSlip:
    return GradientSlip(cause, sentence, DX, kinds, dx=fn)


def _mean(p: Pass, a: Array) -> Array:
    return p.pool(a) if p.recipe.centers else np.zeros(())


def _train_dx(p: Pass, dy: Array, w: Array) -> Array:
    """The training formula, whatever the mode."""
    g = dy * w
    fresh = Pass(p.x, p.recipe, p.axes, None)
    return (g - _mean(fresh, g) - fresh.xhat * fresh.pool(g * fresh.xhat)) / fresh.std


def _parameter(of: str, cause: str, sentence: str, formula: str, fn: ParameterGradient) -> GradientSlip:
    return GradientSlip(cause, sentence, formula, BIN if of == "gate" else KINDS, of=of, parameter=fn)


DW = "dweight = sum(dy * xhat) over the batch and positions"
DB = "dbias = sum(dy) over the batch and positions"
DG = "dgate = sum(dy * weight * (xhat_batch - xhat_instance))"


def _weight(case: Case) -> Array:
    return case.parameter("weight", 1.0)


def _halves(case: Case) -> tuple[Array, Array]:
    batch, instance = case.passes()
    return batch.xhat, instance.xhat


def _only_half(which: int) -> Callable[[Case, Array], Array]:
    def predict(case: Case, dy: Array) -> Array:
        grid = case.recipe.to_grid(dy)
        gate = case.parameter("gate", 1.0)
        p = case.passes()[which]
        g = (grid * (gate, 1 - gate)[which]) * _weight(case)
        share = 0 if p.running is not None else p.pool(g) + p.xhat * p.pool(g * p.xhat)
        return case.recipe.from_grid((g - share) / p.std, case.x.shape)

    return predict


def _gates_crossed(case: Case, dy: Array) -> Array:
    gate = case.gate
    return input_gradient(replace(case, gate=None if gate is None else 1 - gate), dy)


GRADIENT: tuple[GradientSlip, ...] = (
    _dx(
        "dx-statistics-constant",
        "mean and variance are treated as constants: both terms through them are missing in dx",
        lambda p, dy, w: dy * w / p.std,
    ),
    _dx(
        "dx-mean-term-missing",
        "the gradient through the mean is missing in dx",
        lambda p, dy, w: (dy * w - p.xhat * p.pool(dy * w * p.xhat)) / p.std,
        CENTRING,
    ),
    _dx(
        "dx-variance-term-missing",
        "the gradient through the variance is missing in dx",
        lambda p, dy, w: (dy * w - _mean(p, dy * w)) / p.std,
        CENTRING,
    ),
    _dx(
        "dx-weight-missing",
        "the weight (gamma) is missing in dx",
        lambda p, dy, w: (
            (dy - _mean(p, dy) - p.xhat * p.pool(dy * p.xhat)) / p.std if p.running is None else dy / p.std
        ),
    ),
    _dx(
        "dx-mean-sign",
        "the gradient through the mean has the wrong sign in dx",
        lambda p, dy, w: (dy * w + _mean(p, dy * w) - p.xhat * p.pool(dy * w * p.xhat)) / p.std,
        CENTRING,
    ),
    _dx(
        "dx-variance-sign",
        "the gradient through the variance has the wrong sign in dx",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat)) / p.std,
    ),
    _dx(
        "dx-not-divided-by-std",
        "dx is not divided by the standard deviation",
        lambda p, dy, w: dy * w - (0 if p.running else _mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat)),
    ),
    _dx(
        "dx-divided-by-variance",
        "dx is divided by the variance where the standard deviation belongs",
        lambda p, dy, w: (
            (dy * w - (0 if p.running else _mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat))) / (p.var + p.eps)
        ),
    ),
    _dx(
        "dx-sums-not-means",
        "the two terms through the statistics are sums; they are means (divide by n)",
        lambda p, dy, w: (dy * w - p.count * (_mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat))) / p.std,
    ),
    _dx(
        "dx-mean-of-variance-sum",
        "the gradient through the variance is a sum where a mean belongs (divide by n)",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) - p.count * p.xhat * p.pool(dy * w * p.xhat)) / p.std,
        CENTRING,
    ),
    _dx(
        "dx-mean-term-sum",
        "the gradient through the mean is a sum where a mean belongs (divide by n)",
        lambda p, dy, w: (dy * w - p.count * _mean(p, dy * w) - p.xhat * p.pool(dy * w * p.xhat)) / p.std,
        CENTRING,
    ),
    _dx(
        "dx-count-minus-one",
        "the gradient through the variance divides by n - 1 although the forward pass divides by n",
        lambda p, dy, w: (
            (dy * w - _mean(p, dy * w) - p.xhat * p.pool(dy * w * p.xhat) * p.count / max(p.count - 1, 1)) / p.std
        ),
    ),
    _dx(
        "dx-count-minus-one",
        "the means in dx divide by n - 1 although the forward pass divides by n",
        lambda p, dy, w: (
            (dy * w - (_mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat)) * p.count / max(p.count - 1, 1)) / p.std
        ),
    ),
    _dx(
        "dx-positions-not-counted",
        "the means in dx are divided by the number of samples alone, not by samples x positions",
        lambda p, dy, w: (
            (dy * w - (_mean(p, dy * w) + p.xhat * p.pool(dy * w * p.xhat)) * p.x.shape[2] * p.x.shape[3]) / p.std
        ),
    ),
    _dx(
        "dx-centred-for-normalized",
        "dx uses x - mean where xhat belongs",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) - p.centred * p.pool(dy * w * p.centred)) / p.std,
    ),
    _dx(
        "dx-centred-for-normalized",
        "dx uses x - mean where xhat belongs in one factor of the term through the variance",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) - p.centred * p.pool(dy * w * p.xhat)) / p.std,
    ),
    _dx(
        "dx-eps-missing",
        "the backward pass leaves eps out: it divides by sqrt(var), the forward pass by sqrt(var + eps)",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) - p.centred * p.pool(dy * w * p.centred) / p.var) / np.sqrt(p.var),
    ),
    _dx(
        "dx-pools-batch-only",
        "the means in dx run over the batch axis alone, separately at every position",
        lambda p, dy, w: (
            (dy * w - (dy * w).mean(axis=0, keepdims=True) - p.xhat * (dy * w * p.xhat).mean(axis=0, keepdims=True))
            / p.std
        ),
        ("batch",),
    ),
    _dx(
        "dx-pools-everything",
        "the means in dx run over the whole input",
        lambda p, dy, w: (dy * w - (dy * w).mean() - p.xhat * (dy * w * p.xhat).mean()) / p.std,
    ),
    _dx(
        "dx-pools-channel",
        "the means in dx run over one channel; the statistics were pooled over several",
        lambda p, dy, w: (
            (dy * w - (dy * w).mean(axis=3, keepdims=True) - p.xhat * (dy * w * p.xhat).mean(axis=3, keepdims=True))
            / p.std
        ),
        ("group", "layer"),
    ),
    _dx(
        "dx-pools-batch",
        "the means in dx run over the batch; the statistics are each sample's own",
        lambda p, dy, w: (
            (
                dy * w
                - (dy * w).mean(axis=(0, 2, 3), keepdims=True)
                - p.xhat * (dy * w * p.xhat).mean(axis=(0, 2, 3), keepdims=True)
            )
            / p.std
        ),
        ("instance", "group", "layer"),
    ),
    _dx(
        "dx-pools-feature",
        "the means in dx run over the batch axis; layer norm pools over the features",
        lambda p, dy, w: (
            (
                dy * w
                - (dy * w).mean(axis=(0, 3), keepdims=True)
                - p.xhat * (dy * w * p.xhat).mean(axis=(0, 3), keepdims=True)
            )
            / p.std
        ),
        ("layer", "rms"),
    ),
    _dx(
        "dx-weight-after-means",
        "dx multiplies by the weight after taking the means; the weight differs between the channels of a group",
        lambda p, dy, w: w * (dy - _mean(p, dy) - p.xhat * p.pool(dy * p.xhat)) / p.std,
        ("layer", "group", "rms"),
    ),
    _dx(
        "dx-layer-norm-for-rms",
        "dx has a term through the mean: that is layer norm's, RMS norm does not centre",
        lambda p, dy, w: (dy * w - p.pool(dy * w) - p.xhat * p.pool(dy * w * p.xhat)) / p.std,
        ("rms",),
    ),
    _dx(
        "dx-training-formula-in-eval",
        "evaluation uses training's dx; with running statistics dx = weight * dy / sqrt(running_var + eps)",
        _train_dx,
    ),
    _dx(
        "dx-training-formula-in-eval",
        "evaluation uses training's dx, with terms through statistics that do not depend on the input",
        lambda p, dy, w: (dy * w - _mean(p, dy * w) - p.xhat * p.pool(dy * w * p.xhat)) / p.std,
    ),
    GradientSlip("dx-zero", "dx is zero: no gradient reaches the input", DX, whole=lambda c, dy: np.zeros(dy.shape)),
    GradientSlip("dx-identity", "dx is dy, unchanged", DX, whole=lambda c, dy: np.asarray(dy, dtype=np.float64)),
    GradientSlip("dx-half-missing", "dx has the batch half alone", MIX, BIN, whole=_only_half(0)),
    GradientSlip("dx-half-missing", "dx has the instance half alone", MIX, BIN, whole=_only_half(1)),
    GradientSlip("dx-gates-crossed", "in dx the gate multiplies the wrong half", MIX, BIN, whole=_gates_crossed),
    # --- parameters ---
    _parameter(
        "weight",
        "dweight-from-input",
        "dweight multiplies dy by x; it must be by xhat",
        DW,
        lambda dy, c, h: per_channel_sum(dy * c.recipe.to_grid(c.x)),
    ),
    _parameter(
        "weight",
        "dweight-not-normalized",
        "dweight multiplies dy by x - mean; the division by the standard deviation is missing",
        DW,
        lambda dy, c, h: per_channel_sum(dy * c.passes()[0].centred),
    ),
    _parameter(
        "weight",
        "dweight-from-output",
        "dweight multiplies dy by the output; it must be by xhat",
        DW,
        lambda dy, c, h: per_channel_sum(dy * (h * _weight(c) + c.parameter("bias", 0.0))),
    ),
    _parameter(
        "weight",
        "dweight-mean",
        "dweight is a mean; it is a sum",
        DW,
        lambda dy, c, h: per_channel_sum(dy * h) / (h.shape[0] * h.shape[3]),
    ),
    _parameter(
        "weight",
        "dweight-mean",
        "dweight is divided by the batch size; it is a sum",
        DW,
        lambda dy, c, h: per_channel_sum(dy * h) / h.shape[0],
    ),
    _parameter(
        "weight",
        "dweight-scaled-by-weight",
        "dweight is multiplied by the weight",
        DW,
        lambda dy, c, h: per_channel_sum(dy * h * _weight(c)),
    ),
    _parameter("weight", "dweight-sign", "dweight has the wrong sign", DW, lambda dy, c, h: -per_channel_sum(dy * h)),
    _parameter(
        "weight", "dweight-is-dbias", "dweight is sum(dy): that is dbias", DW, lambda dy, c, h: per_channel_sum(dy)
    ),
    _parameter("weight", "dweight-zero", "dweight is zero or missing", DW, lambda dy, c, h: per_channel_sum(0 * dy)),
    _parameter(
        "weight",
        "dweight-batch-half",
        "dweight uses the batch half alone",
        DW,
        lambda dy, c, h: per_channel_sum(dy * c.passes()[0].xhat),
    ),
    _parameter(
        "weight",
        "dweight-first-sample",
        "dweight leaves out the sum over the batch",
        DW,
        lambda dy, c, h: (dy * h)[0].sum(axis=2).reshape(-1),
    ),
    _parameter(
        "weight",
        "dweight-pools-feature",
        "dweight repeats one sum for all channels of a group",
        DW,
        lambda dy, c, h: np.broadcast_to((dy * h).sum(axis=(0, 2, 3), keepdims=True), (1, *h.shape[1:3], 1)).reshape(
            -1
        ),
    ),
    _parameter(
        "bias",
        "dbias-mean",
        "dbias is a mean; it is a sum",
        DB,
        lambda dy, c, h: per_channel_sum(dy) / (h.shape[0] * h.shape[3]),
    ),
    _parameter(
        "bias",
        "dbias-mean",
        "dbias is divided by the batch size; it is a sum",
        DB,
        lambda dy, c, h: per_channel_sum(dy) / h.shape[0],
    ),
    _parameter(
        "bias",
        "dbias-scaled-by-weight",
        "dbias is multiplied by the weight",
        DB,
        lambda dy, c, h: per_channel_sum(dy * _weight(c)),
    ),
    _parameter("bias", "dbias-sign", "dbias has the wrong sign", DB, lambda dy, c, h: -per_channel_sum(dy)),
    _parameter("bias", "dbias-zero", "dbias is zero or missing", DB, lambda dy, c, h: per_channel_sum(0 * dy)),
    _parameter(
        "bias",
        "dbias-is-dweight",
        "dbias is sum(dy * xhat): that is dweight",
        DB,
        lambda dy, c, h: per_channel_sum(dy * h),
    ),
    _parameter(
        "bias",
        "dbias-first-sample",
        "dbias leaves out the sum over the batch",
        DB,
        lambda dy, c, h: dy[0].sum(axis=2).reshape(-1),
    ),
    _parameter(
        "bias",
        "dbias-pools-feature",
        "dbias repeats one sum for all channels of a group",
        DB,
        lambda dy, c, h: np.broadcast_to(dy.sum(axis=(0, 2, 3), keepdims=True), (1, *h.shape[1:3], 1)).reshape(-1),
    ),
    _parameter(
        "gate",
        "dgate-sign",
        "dgate has the wrong sign",
        DG,
        lambda dy, c, h: -per_channel_sum(dy * _weight(c) * (_halves(c)[0] - _halves(c)[1])),
    ),
    _parameter(
        "gate",
        "dgate-weight-missing",
        "the weight is missing in dgate",
        DG,
        lambda dy, c, h: per_channel_sum(dy * (_halves(c)[0] - _halves(c)[1])),
    ),
    _parameter(
        "gate",
        "dgate-half-missing",
        "dgate leaves the instance half out",
        DG,
        lambda dy, c, h: per_channel_sum(dy * _weight(c) * _halves(c)[0]),
    ),
    _parameter("gate", "dgate-zero", "dgate is zero or missing", DG, lambda dy, c, h: per_channel_sum(0 * dy)),
    _parameter(
        "gate",
        "dgate-mean",
        "dgate is a mean; it is a sum",
        DG,
        lambda dy, c, h: per_channel_sum(dy * _weight(c) * (_halves(c)[0] - _halves(c)[1])) / (h.shape[0] * h.shape[3]),
    ),
)


# --- running statistics ----------------------------------------------------------------------------------------

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
