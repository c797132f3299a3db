"""Wrong gradients: of the input, of weight and bias, of the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normlab.check.oracle import (
    KINDS,
    Array,
    Case,
    InputGradient,
    ParameterGradient,
    Pass,
    input_gradient,
    per_channel_sum,
)
from normlab.check.slips.base import BIN, CENTRING, DX, MIX, GradientSlip


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
