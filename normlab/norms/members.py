"""More members of the family: each an entry with its formula and paper, and a grid function.

Those that a study compares by default, and the two nearest to them, are in `normlab.norms.family`. What is no
map per plane is registered by `normlab.norms.modules`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from normlab.norms.family import (
    AFFINE,
    Learned,
    batch,
    instance,
    register_norm,
)
from normlab.norms.grid import (
    Affine,
    Moments,
    average,
    exp,
    maximum,
    minimum,
    parts_of,
    rsqrt,
    sqrt,
    standardize,
    stop_gradient,
)

_TINY = 1e-30  # below any sum of squares: the root of zero has no derivative


@register_norm(
    "brn",
    title="batch renormalization",
    formula="y = weight * ((x - mean_ns) / s * r + d) + bias, s = sqrt(var_ns + eps), s' = sqrt(running_var + eps), "
    "r = clip(s / s', 1 / r_max, r_max), d = clip((mean_ns - running_mean) / s', -d_max, d_max), constants",
    paper="Ioffe 2017, arXiv:1702.03275",
    when="Where bn is wanted and batches are small, or their samples depend on each other: training then normalizes "
    "nearly as evaluation does. It costs what bn costs. Its paper claims ImageNet accuracy at batches of 4 "
    "that bn needs "
    "32 for. Without r_max and d_max the clips follow the paper's schedule: bn for 5000 steps, then r_max grows to 3 "
    "until step 40000 and d_max to 5 until step 25000.",
    parameters={
        "known_mean": Learned(0.0, trained=False),
        "known_var": Learned(1.0, trained=False),
        "largest_r": Learned(1.0, per_channel=False, trained=False),
        "largest_d": Learned(0.0, per_channel=False, trained=False),
    },
    running=True,
    takes_over=True,
    layer="normlab.layers.batches:BatchRenorm",
    aliases=("batch-renorm", "renorm", "batch-renormalization"),
)
def batch_renormalization(
    m: Moments, p: SimpleNamespace, *, r_max: float | None = None, d_max: float | None = None
) -> Affine:
    """Batch statistics, corrected towards the running ones by constants of bounded size."""
    pooled = m.pool("n")
    if not m.training:
        return standardize(pooled, p)
    mean, var = stop_gradient(pooled.mean), stop_gradient(pooled.var)
    known = rsqrt(stop_gradient(p.known_var) + p.eps)
    high, most = stop_gradient(p.largest_r), stop_gradient(p.largest_d)
    r = minimum(maximum(sqrt(var + p.eps) * known, 1 / high), high)
    d = minimum(maximum((mean - stop_gradient(p.known_mean)) * known, -most), most)
    return Affine(p.weight * (r * rsqrt(pooled.var + p.eps)), pooled.mean, p.weight * d + p.bias)


@register_norm(
    "ghost",
    title="ghost batch normalization",
    formula="y = weight * (x - mean_ps) / sqrt(var_ps + eps) + bias, p a part of the batch",
    paper="Hoffer, Hubara & Soudry 2017, arXiv:1705.08741",
    when="In training with large batches: statistics of parts of `size` samples (or of `parts` parts) keep the "
    "noise that "
    "small batches have. It costs what bn costs. Its paper claims that large batches then generalize as small ones do. "
    "Running statistics move by each part's in turn.",
    running=True,
    takes_over=True,
    layer="normlab.layers.batches:GhostBatchNorm",
    aliases=("gbn", "ghost-bn", "ghost-batch-norm"),
)
def ghost(m: Moments, p: SimpleNamespace, *, size: int = 32, parts: int | None = None) -> Affine:
    """Batch norm on parts of the batch, each by itself."""
    return standardize(m.pool("n", parts=parts_of(m.shape[0], size, parts)), p)


@register_norm(
    "sn",
    title="switchable normalization",
    formula="y = weight * (x - m) / sqrt(v + eps) + bias, m and v the averages of mean and var over s, c s and n s, "
    "weighted by softmax",
    paper="Luo, Ren, Peng, Zhang & Li 2019, arXiv:1806.10779",
    when="Where it is not known which statistics suit: each layer learns what it mixes, one set of three weights for "
    "means and one for variances. Its moments are measured once, as for bn. Its paper claims results at least "
    "as good as "
    "bn's and gn's over several tasks, also at two images per GPU.",
    parameters={
        f"{moment}_weight_{over}": Learned(1.0, per_channel=False)
        for moment in ("mean", "var")
        for over in ("in", "ln", "bn")
    },
    instances=True,
    running=True,
    layer="normlab.layers.batches:SwitchableNorm",
    aliases=("switchable", "switch", "switchable-norm"),
)
def switchable(m: Moments, p: SimpleNamespace) -> Affine:
    """Mean and variance of instance, layer and batch norm, each mixed by a softmax of learned weights."""
    pools = m, m.pool("c"), m.pool("n")
    mean = _mixed([v.mean for v in pools], [p.mean_weight_in, p.mean_weight_ln, p.mean_weight_bn])
    var = _mixed([v.var for v in pools], [p.var_weight_in, p.var_weight_ln, p.var_weight_bn])
    return Affine(p.weight * rsqrt(var + p.eps), mean, p.bias)


def _mixed(values: list[Any], logits: list[Any]) -> Any:
    largest = stop_gradient(maximum(maximum(logits[0], logits[1]), logits[2]))
    shares = [exp(v - largest) for v in logits]
    return sum(a * v for a, v in zip(shares, values, strict=True)) / sum(shares)


def _first(channels: int, *, ratio: float = 0.5, **_: object) -> list[float]:
    """1 for the channels that are instance-normalized, 0 for the others."""
    return [float(c < int(channels * ratio)) for c in range(channels)]


@register_norm(
    "ibn-a",
    title="instance-batch normalization a",
    formula="in of the first half of the channels, bn of the others",
    paper="Pan, Luo, Shi & Tang 2018, arXiv:1807.09441",
    when="In the early blocks of a network that must work on images of another style (another city, season, "
    "renderer): instance norm takes the style out of half of the channels, batch norm keeps the content in "
    "the rest. It "
    "costs what bn costs. Its paper claims better transfer, and no loss where nothing changes.",
    parameters={"instances": Learned(_first, trained=False)},
    instances=True,
    running=True,
    layer="normlab.layers.batches:InstanceBatchNorm",
    aliases=("ibn",),
)
def instance_batch(m: Moments, p: SimpleNamespace, *, ratio: float = 0.5) -> Affine:
    """Instance norm of the first channels, `ratio` of them, and batch norm of the others."""
    mixed: Affine = p.instances * instance(m, p) + (1 - p.instances) * batch(m, p)
    return mixed


register_norm(
    "ibn-b",
    title="instance-batch normalization b",
    formula="y = weight * (x - mean_s) / sqrt(var_s + eps) + bias, after the addition of a residual block",
    paper="Pan, Luo, Shi & Tang 2018, arXiv:1807.09441",
    when="The b form of IBN-Net leaves bn in the residual branch and puts this instance norm after the addition, in "
    "the blocks that end the first stages: so does a comparison in a network of normlab's own (`resnet14`). As a "
    "layer, and where it replaces the norms of another network, it is in. Its paper claims the better transfer of the "
    "two forms, at some loss where nothing changes.",
    behind_addition_of="bn",
    layer="normlab.layers.norms:InstanceNorm",
    instances=True,
    in_evaluation="bn",
)(instance)


@register_norm(
    "mobn",
    title="mean-only batch normalization",
    formula="y = x - mean_ns + bias",
    paper="Salimans & Kingma 2016, arXiv:1602.07868",
    when="Beside weight normalization (`mobn+wn`), which sets the scale: subtracting the mean adds less noise than "
    "bn, and "
    "costs less. Its paper claims better CIFAR-10 accuracy than bn.",
    parameters={"bias": AFFINE["bias"]},
    affine=False,
    running=True,
    per_channel=True,
    aliases=("mean-only", "mean-only-bn"),
)
def mean_only(m: Moments, p: SimpleNamespace) -> Affine:
    """The batch's mean is subtracted; nothing is divided by."""
    return Affine(1.0, m.pool("n").mean, p.bias)


@register_norm(
    "vobn",
    title="variance-only batch normalization",
    formula="y = weight * x / sqrt(var_ns + eps) + bias",
    paper="the other half of Ioffe & Szegedy 2015, arXiv:1502.03167",
    when="To find out which half of bn matters in a network, beside mobn; the mean stays in.",
    running=True,
    per_channel=True,
    aliases=("variance-only", "variance-only-bn"),
)
def variance_only(m: Moments, p: SimpleNamespace) -> Affine:
    """Division by the batch's standard deviation; nothing is subtracted."""
    return Affine(p.weight * rsqrt(m.pool("n").var + p.eps), 0.0, p.bias)


@register_norm(
    "power",
    title="power normalization, PN-V",
    formula="y = weight * x / sqrt(mean_ns(x^2) + eps) + bias",
    paper="Shen, Yao, Gholami, Mahoney & Keutzer 2020, arXiv:2003.07845; PN-V, without running statistics in training",
    when="In place of layer norm in networks whose batch means vary too much for bn: the quadratic mean varies "
    "less. It "
    "costs what bn costs. Its paper claims better translation and language modelling than layer norm, for PN. This is "
    "PN-V: the batch's quadratic mean and its exact gradient. PN divides by the running quadratic mean of the batches "
    "before, and subtracts from dy a running mean of dy * y times y where the exact gradient has the batch's.",
    running=True,
    per_channel=True,
    aliases=("pn", "powernorm", "power-norm"),
)
def power(m: Moments, p: SimpleNamespace) -> Affine:
    """Each channel divided by its root mean square over samples and positions; nothing is subtracted."""
    pooled = m.pool("n")
    return Affine(p.weight * rsqrt(pooled.var + pooled.mean * pooled.mean + p.eps), 0.0, p.bias)


@register_norm(
    "grn",
    title="global response normalization",
    formula="y = weight * x * g / (mean_c(g) + eps) + bias + x, g = sqrt(sum_s(x^2))",
    paper="Woo et al. 2023 (ConvNeXt V2), arXiv:2301.00808",
    when="After the activation in the middle of a ConvNeXt block: channels compete by their strength. Weight and bias "
    "start at 0, so the layer starts as the identity and does not take a norm's place. It costs what in "
    "costs. Its paper "
    "claims that masked pre-training no longer leaves dead channels.",
    parameters={"weight": Learned(0.0), "bias": Learned(0.0)},
    affine=False,
    eps=1e-6,
    layer="normlab.layers.batches:GlobalResponseNorm",
    aliases=("global-response",),
)
def global_response(m: Moments, p: SimpleNamespace) -> Affine:
    """Each plane times its norm relative to the channels' average, with a residual."""
    strength = sqrt(maximum((m.var + m.mean * m.mean) * m.count, _TINY))
    relative = strength / (average(strength, "c") + p.eps)
    return Affine(p.weight * relative + 1, 0.0, p.bias)


@register_norm(
    "frozen",
    title="frozen batch normalization",
    formula="y = weight * (x - running_mean) / sqrt(running_var + eps) + bias, all of them constants",
    paper="Ioffe & Szegedy 2015, arXiv:1502.03167, in evaluation; torchvision's FrozenBatchNorm2d",
    when="In the pretrained part of a detector or any network that is tuned with small batches: what the norm "
    "learned is "
    "kept, in training too. It costs less than bn, since nothing is measured, and can be folded into a convolution.",
    running=True,
    per_channel=True,
    takes_over=True,
    batchwise=False,
    layer="normlab.layers.batches:FrozenBatchNorm",
    aliases=("frozen-bn",),
)
def frozen(m: Moments, p: SimpleNamespace) -> Affine:
    """The running statistics of batch norm, in training too."""
    same: Affine = batch(m, p)
    return same
