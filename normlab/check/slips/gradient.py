"""Wrong gradients: of the input, of weight and bias, of the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normlab.check.oracle import KINDS, Array, Case, Pass, input_gradient, per_channel_sum
from normlab.check.slips.base import BIN, CENTRING, DX, MIX, Backward, GradientSlip, Pool
from normlab.check.slips.moved import WAYS

ParameterGradient = Callable[[Array, Case, Array], Array]


def _dx(cause: str, sentence: str, kinds: tuple[str, ...] = KINDS, **stages: Callable[..., Array]) -> GradientSlip:
    return GradientSlip(cause, sentence, DX, kinds, dx=Backward(**stages))


def _mean(p: Pass, g: Array, pool: Pool) -> Array:
    return pool(p, g) if p.recipe.centers else np.zeros((1, 1, 1, 1))


def _variance(p: Pass, g: Array, pool: Pool) -> Array:
    return p.xhat * pool(p, g * p.xhat)


def _without_weight(p: Pass, dy: Array, weight: Array) -> Array:
    """dy in place of weight * dy."""
    return dy * np.ones_like(weight)


def _train_dx(p: Pass, dy: Array, weight: Array) -> Array:
    """The training formula, whatever the mode."""
    return Backward().dx(p.without_running(), dy, weight)


def _pool_over(*axes: int) -> Pool:
    """Means over other axes of the grid."""
    return lambda p, a: a.mean(axis=axes, keepdims=True)


def _counted(count: Callable[[Pass], int]) -> Pool:
    """Sums over the right values, divided by another count."""
    return lambda p, a: p.pool(a) * p.count / max(count(p), 1)


def _sum(p: Pass, a: Array) -> Array:
    return p.count * p.pool(a)


# what is taken for the number of pooled values; N, G, K, S are the sizes of the grid
COUNTS: tuple[tuple[str, Callable[[Pass], int]], ...] = (
    ("the batch size N", lambda p: p.x.shape[0]),
    ("the number of channels", lambda p: p.x.shape[1] * p.x.shape[2]),
    ("the positions of one channel (H * W)", lambda p: p.x.shape[3]),
    ("the channels of a group", lambda p: p.x.shape[2]),
    ("the number of groups", lambda p: p.x.shape[1]),
    ("all values of a sample (C * H * W)", lambda p: p.x[0].size),
    ("all values of the input", lambda p: p.x.size),
    ("the positions of all samples (N * H * W)", lambda p: p.x.shape[0] * p.x.shape[3]),
    ("the samples and channels (N * C)", lambda p: p.x.shape[0] * p.x.shape[1] * p.x.shape[2]),
    ("the groups of all samples (N * G)", lambda p: p.x.shape[0] * p.x.shape[1]),
    ("the positions of as many channels as there are groups (G * H * W)", lambda p: p.x.shape[1] * p.x.shape[3]),
    ("the height", lambda p: p.spatial[0]),
    ("the width", lambda p: p.spatial[-1]),
)


def _scaled_term(term: Callable[..., Array], by: float) -> Callable[..., Array]:
    return lambda p, g, pool: by * term(p, g, pool)


def _dx_in_rows(into: Callable[..., Array], back: Callable[..., Array]) -> Callable[[Case, Array], Array]:
    """dx computed in rows of channels, into which dy comes in one way and from which dx goes back in another."""

    def predict(case: Case, dy: Array) -> Array:
        shape, channels = case.x.shape, case.recipe.channels
        rows = replace(case, x=np.moveaxis(case.x, 1, -1).reshape(-1, channels))
        return back(input_gradient(rows, into(dy, channels)), shape)

    return predict


def _moved_sum(into: Callable[..., Array], times_xhat: bool) -> ParameterGradient:
    """A parameter's gradient from rows of dy that are cut in the wrong order."""

    def predict(dy: Array, case: Case, h: Array) -> Array:
        shape, channels = case.x.shape, case.recipe.channels
        rows = into(case.recipe.from_grid(dy, shape), channels)
        other = np.moveaxis(case.recipe.from_grid(h, shape), 1, -1).reshape(-1, channels) if times_xhat else 1.0
        return np.asarray((rows * other).sum(axis=0))

    return predict


def _parameter(of: str, cause: str, sentence: str, formula: str, fn: ParameterGradient) -> GradientSlip:
    return GradientSlip(cause, sentence, formula, BIN if of == "gate" else KINDS, of, parameter=fn)


DW = "dweight = sum(dy * xhat) over the batch and positions"
DB = "dbias = sum(dy) over the batch and positions"
DG = "dgate = sum(dy * weight * (xhat_batch - xhat_instance))"


def _weight(case: Case) -> Array:
    return case.parameter("weight", 1.0)


def _half_outputs(case: Case) -> tuple[Array, Array]:
    batch, instance = case.passes()
    return batch.xhat, instance.xhat


def _dx_of_half(which: int) -> Callable[[Case, Array], Array]:
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
        "dx-training-formula-in-eval",
        "evaluation uses training's dx; with running statistics dx = weight * dy / sqrt(running_var + eps)",
        whole=lambda case, dy: input_gradient(case, dy, _train_dx),
    ),
    _dx(
        "dx-training-formula-in-eval",
        "evaluation uses training's dx, with terms through statistics that do not depend on the input",
        mean=_mean,
        variance=_variance,
    ),
    _dx(
        "dx-statistics-constant",
        "mean and variance are treated as constants: both terms through them are missing in dx",
        mean=lambda p, g, pool: 0 * g,
        variance=lambda p, g, pool: 0 * g,
    ),
    _dx(
        "dx-mean-term-missing",
        "the gradient through the mean is missing in dx",
        CENTRING,
        mean=lambda p, g, pool: 0 * g,
    ),
    _dx(
        "dx-variance-term-missing",
        "the gradient through the variance is missing in dx",
        CENTRING,
        variance=lambda p, g, pool: 0 * g,
    ),
    _dx("dx-weight-missing", "the weight (gamma) is missing in dx", weigh=_without_weight),
    _dx(
        "dx-weight-missing",
        "the weight (gamma) is missing in the gradient through the mean in dx",
        CENTRING,
        mean_of=_without_weight,
    ),
    _dx(
        "dx-weight-missing",
        "the weight (gamma) is missing in the gradient through the variance in dx",
        variance_of=_without_weight,
    ),
    _dx(
        "dx-weight-missing",
        "the weight (gamma) is missing in the gradients through mean and variance in dx",
        CENTRING,
        mean_of=_without_weight,
        variance_of=_without_weight,
    ),
    _dx(
        "dx-mean-sign",
        "the gradient through the mean has the wrong sign in dx",
        CENTRING,
        mean=_scaled_term(_mean, -1),
    ),
    _dx(
        "dx-variance-sign",
        "the gradient through the variance has the wrong sign in dx",
        variance=_scaled_term(_variance, -1),
    ),
    _dx(
        "dx-variance-half",
        "the gradient through the variance is half as large as it must be: the 2 of d(x^2) = 2 x dx is missing",
        variance=_scaled_term(_variance, 0.5),
    ),
    _dx(
        "dx-variance-twice",
        "the gradient through the variance is twice as large as it must be: the 1/2 of the square root is missing",
        variance=_scaled_term(_variance, 2),
    ),
    _dx(
        "dx-not-divided-by-std",
        "dx is not divided by the standard deviation",
        divide=lambda p: np.ones((1, 1, 1, 1)),
    ),
    _dx(
        "dx-divided-by-variance",
        "dx is divided by the variance where the standard deviation belongs",
        divide=lambda p: p.var + p.eps,
    ),
    _dx(
        "dx-multiplied-by-std",
        "dx is multiplied by the standard deviation; it must be divided by it",
        divide=lambda p: 1 / p.std,
    ),
    _dx(
        "dx-sums-not-means",
        "the two terms through the statistics are sums; they are means (divide by n)",
        pool=_sum,
    ),
    _dx(
        "dx-mean-of-variance-sum",
        "the gradient through the variance is a sum where a mean belongs (divide by n)",
        CENTRING,
        variance=lambda p, g, pool: p.count * _variance(p, g, pool),
    ),
    _dx(
        "dx-mean-term-sum",
        "the gradient through the mean is a sum where a mean belongs (divide by n)",
        CENTRING,
        mean=lambda p, g, pool: p.count * _mean(p, g, pool),
    ),
    _dx(
        "dx-not-divided-by-count",
        "1/n is forgotten: dx is n times as large as it must be",
        after=lambda p, dx, w: dx * p.count,
    ),
    _dx(
        "dx-count-minus-one",
        "the gradient through the variance divides by n - 1 although the forward pass divides by n",
        variance=lambda p, g, pool: _variance(p, g, pool) * p.count / max(p.count - 1, 1),
    ),
    _dx(
        "dx-count-minus-one",
        "the means in dx divide by n - 1 although the forward pass divides by n",
        pool=_counted(lambda p: p.count - 1),
    ),
    _dx(
        "dx-positions-not-counted",
        "the means in dx are divided by the number of samples alone, not by samples x positions",
        ("batch", "batch-instance"),
        pool=_counted(lambda p: p.x.shape[0]),
    ),
    *(
        _dx(
            "dx-wrong-count",
            f"the means in dx divide by {what}; they divide by the number of values that are pooled",
            pool=_counted(count),
        )
        for what, count in COUNTS
    ),
    *(
        _dx(
            "dx-wrong-count",
            f"{what} is taken for the number of values that are pooled, in one place of dx",
            after=lambda p, dx, w, count=count: dx * p.count / max(count(p), 1),
        )
        for what, count in COUNTS
    ),
    *(
        _dx(
            "dx-wrong-count",
            f"{what} is taken for the number of values that are pooled, as the factor of g in dx",
            mean=lambda p, g, pool, count=count: _mean(p, g, pool) * p.count / max(count(p), 1),
            variance=lambda p, g, pool, count=count: _variance(p, g, pool) * p.count / max(count(p), 1),
            after=lambda p, dx, w, count=count: dx * max(count(p), 1) / p.count,
        )
        for what, count in COUNTS
    ),
    _dx(
        "dx-centred-for-normalized",
        "dx uses x - mean where xhat belongs",
        variance=lambda p, g, pool: p.centred * pool(p, g * p.centred),
    ),
    _dx(
        "dx-centred-for-normalized",
        "dx uses x - mean where xhat belongs in one factor of the term through the variance",
        variance=lambda p, g, pool: p.centred * pool(p, g * p.xhat),
    ),
    _dx(
        "dx-variance-of-g",
        "the term through the variance pools g alone, in place of g * xhat",
        variance=lambda p, g, pool: p.xhat * pool(p, g),
    ),
    _dx(
        "dx-variance-xhat-missing",
        "the term through the variance is not multiplied by xhat",
        variance=lambda p, g, pool: pool(p, g * p.xhat),
    ),
    _dx(
        "dx-variance-divided-again",
        "the term through the variance is divided by the standard deviation once too often",
        variance=lambda p, g, pool: _variance(p, g, pool) / p.std,
    ),
    _dx(
        "dx-mean-not-divided-by-std",
        "the term through the mean is not divided by the standard deviation",
        mean=lambda p, g, pool: _mean(p, g, pool) * p.std,
    ),
    _dx(
        "dx-division-of-one-term",
        "only g is divided by the standard deviation; the terms through the statistics are not",
        pool=lambda p, a: p.pool(a) * p.std,
    ),
    _dx(
        "dx-eps-missing",
        "the backward pass leaves eps out: it divides by sqrt(var), the forward pass by sqrt(var + eps)",
        variance=lambda p, g, pool: p.centred * pool(p, g * p.centred) / p.var,
        divide=lambda p: np.sqrt(p.var),
    ),
    _dx(
        "dx-eps-missing",
        "the backward pass leaves eps out: it divides by sqrt(var), the forward pass by sqrt(var + eps)",
        divide=lambda p: np.sqrt(p.var),
    ),
    _dx(
        "dx-pools-batch-only",
        "the means in dx run over the batch axis alone, separately at every position",
        ("batch",),
        pool=_pool_over(0),
    ),
    _dx("dx-pools-everything", "the means in dx run over the whole input", pool=_pool_over(0, 1, 2, 3)),
    _dx(
        "dx-pools-channel",
        "the means in dx run over one channel; the statistics were pooled over several",
        ("group", "layer"),
        pool=_pool_over(3),
    ),
    _dx(
        "dx-pools-batch",
        "the means in dx run over the batch; the statistics are each sample's own",
        ("instance", "group", "layer"),
        pool=_pool_over(0, 2, 3),
    ),
    _dx(
        "dx-pools-feature",
        "the means in dx run over the batch axis; layer norm pools over the features",
        ("layer", "rms"),
        pool=_pool_over(0, 3),
    ),
    _dx(
        "dx-pools-sample",
        "the means in dx run over a whole sample; the statistics are of one channel, or of a group of them",
        ("batch", "instance", "group"),
        pool=_pool_over(1, 2, 3),
    ),
    _dx(
        "dx-pools-instance",
        "the means in dx run over one sample's positions; the statistics are of the whole batch",
        ("batch",),
        pool=_pool_over(2, 3),
    ),
    _dx(
        "dx-weight-after-means",
        "dx multiplies by the weight after taking the means; the weight differs between the channels of a group",
        ("layer", "group", "rms"),
        weigh=_without_weight,
        after=lambda p, dx, w: dx * w,
    ),
    _dx(
        "dx-layer-norm-for-rms",
        "dx has a term through the mean: that is layer norm's, RMS norm does not centre",
        ("rms",),
        mean=lambda p, g, pool: pool(p, g),
    ),
    _dx("dx-sign", "dx has the wrong sign", after=lambda p, dx, w: -dx),
    _dx("dx-zero", "dx is zero: no gradient reaches the input", whole=lambda c, dy: np.zeros(dy.shape)),
    _dx("dx-identity", "dx is dy, unchanged", whole=lambda c, dy: np.asarray(dy, dtype=np.float64)),
    GradientSlip("dx-half-missing", "dx has the batch half alone", MIX, BIN, dx=Backward(whole=_dx_of_half(0))),
    GradientSlip("dx-half-missing", "dx has the instance half alone", MIX, BIN, dx=Backward(whole=_dx_of_half(1))),
    GradientSlip(
        "dx-gates-crossed", "in dx the gate multiplies the wrong half", MIX, BIN, dx=Backward(whole=_gates_crossed)
    ),
    *(
        _dx(
            "gradient-axes-not-moved",
            sentence,
            ("batch",),
            whole=_dx_in_rows(into, back),
        )
        for sentence, (_, into, back) in zip(
            (
                "the backward pass reshapes dy to (N * H * W, C) without moving the channel axis to the end first",
                "the backward pass reshapes dy to (N * H * W, C) without moving the channel axis to the end first; dx "
                "is moved back",
                "the transpose is not undone in the backward pass: rows of channels are reshaped to (N, C, H, W)",
            ),
            WAYS,
            strict=True,
        )
    ),
    *(
        GradientSlip(
            "gradient-axes-not-moved",
            f"d{of} is a sum over rows of dy that are cut without moving the channel axis to the end first",
            "dweight = sum(dy * xhat), dbias = sum(dy), channel by channel",
            ("batch",),
            of,
            parameter=_moved_sum(WAYS[0][1], of == "weight"),
        )
        for of in ("weight", "bias")
    ),
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
        "dweight-divided-twice",
        "dweight is divided by the standard deviation once too often",
        DW,
        lambda dy, c, h: per_channel_sum(dy * h / c.passes()[0].std),
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
        "dweight-mean",
        "dweight is a mean over the positions; it is a sum",
        DW,
        lambda dy, c, h: per_channel_sum(dy * h) / h.shape[3],
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
        "dbias-mean",
        "dbias is a mean over the positions; it is a sum",
        DB,
        lambda dy, c, h: per_channel_sum(dy) / h.shape[3],
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
        lambda dy, c, h: -per_channel_sum(dy * _weight(c) * (_half_outputs(c)[0] - _half_outputs(c)[1])),
    ),
    _parameter(
        "gate",
        "dgate-weight-missing",
        "the weight is missing in dgate",
        DG,
        lambda dy, c, h: per_channel_sum(dy * (_half_outputs(c)[0] - _half_outputs(c)[1])),
    ),
    _parameter(
        "gate",
        "dgate-half-missing",
        "dgate leaves the instance half out",
        DG,
        lambda dy, c, h: per_channel_sum(dy * _weight(c) * _half_outputs(c)[0]),
    ),
    _parameter("gate", "dgate-zero", "dgate is zero or missing", DG, lambda dy, c, h: per_channel_sum(0 * dy)),
    _parameter(
        "gate",
        "dgate-mean",
        "dgate is a mean; it is a sum",
        DG,
        lambda dy, c, h: (
            per_channel_sum(dy * _weight(c) * (_half_outputs(c)[0] - _half_outputs(c)[1])) / (h.shape[0] * h.shape[3])
        ),
    ),
)
