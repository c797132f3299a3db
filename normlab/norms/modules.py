"""Members of the family that are no map of each plane: entries whose layers are modules of their own.

The modules are in `normlab.layers`: `elementwise`, `conditional` and `weights`. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any

from normlab.norms.family import register_norm


def _member(name: str, home: str, title: str, formula: str, paper: str, when: str, **fields: Any) -> None:
    register_norm(name, title=title, formula=formula, paper=paper, when=when, **fields)(f"normlab.layers.{home}")


# --- of positions ---------------------------------------------------------------------------------------------------

_member(
    "channel-ln",
    "positions:ChannelNorm",
    "layer normalization of positions",
    "y = weight * (x - mean_c) / sqrt(var_c + eps) + bias, at every position",
    "Ba, Kiros & Hinton 2016, arXiv:1607.06450; Liu et al. 2022 (ConvNeXt), arXiv:2201.03545",
    "In ConvNeXt and other convolutional networks built as transformers are. Compiled kernels, one pass each way.",
    aliases=("ln2d", "channel-norm"),
)
_member(
    "qk",
    "elementwise:QKNorm",
    "root-mean-square normalization of heads",
    "y = weight * x / sqrt(mean_h(x^2) + eps), h the channels of a head at every position",
    "Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442",
    "On queries and keys before attention (`qk:heads=8:dim=-1` for tokens): logits cannot grow without "
    "bound. The papers "
    "claim stable training of very large transformers. With one head it is RMS norm of each position.",
    aliases=("qk-norm", "rms-position"),
)
_member(
    "scalenorm",
    "elementwise:ScaleNorm",
    "scale normalization",
    "y = g * x / max(norm_c(x), eps), at every position",
    "Nguyen & Salazar 2019, arXiv:1910.05895",
    "In transformers, for one parameter in the place of two per channel. Its paper claims faster "
    "training of translation "
    "at low resources, and the same quality.",
    aliases=("scale-norm", "scale"),
)
_member(
    "adanorm",
    "elementwise:AdaNorm",
    "adaptive normalization without parameters",
    "y = c * (1 - k * z) * z, z = (x - mean_c) / sqrt(var_c + eps) at every position, the first factor a constant",
    "Xu, Sun, Zhang, Zhao & Lin 2019, arXiv:1911.07013",
    "Where layer norm's weight and bias overfit. Its paper claims better results than layer norm on seven of eight "
    "data sets.",
    aliases=("ada-norm",),
)

# --- windows, neighbours, other weights -----------------------------------------------------------------------------

_member(
    "divisive",
    "elementwise:DivisiveNorm",
    "divisive normalization",
    "v = x - mean_w(x), y = weight * v / sqrt(sigma^2 + mean_w(v^2)) + bias, w all channels in a window",
    "Ren, Liao, Urtasun, Sinz & Zemel 2017, arXiv:1611.04520",
    "Where contrast is local: illumination that changes over an image. It costs two poolings of windows. "
    "Its paper claims "
    "better image classification and super-resolution than bn with a sparse penalty beside it.",
    aliases=("dn", "local-contrast"),
)
_member(
    "lrn",
    "elementwise:LocalResponseNorm",
    "local response normalization",
    "y = x / (k + alpha * sum_w(x^2)) ** beta, w the neighbouring channels",
    "Krizhevsky, Sutskever & Hinton 2012",
    "To rebuild AlexNet and its time. No parameters. torch's layer divides alpha by the number of neighbours; this one "
    "does not, as the paper.",
    aliases=("local-response",),
)
_member(
    "gn-shared",
    "elementwise:GroupWeightNorm",
    "group normalization with weights of groups",
    "y = weight_g * (x - mean_gs) / sqrt(var_gs + eps) + bias_g",
    "Wu & He 2018, arXiv:1803.08494",
    "Where channels of a group must keep their proportions, as in equivariant networks, whose groups are orbits.",
    aliases=("group-weights",),
)
_member(
    "ln-elementwise",
    "elementwise:ElementwiseLayerNorm",
    "layer normalization with weights of elements",
    "y = weight_cs * (x - mean_cs) / sqrt(var_cs + eps) + bias_cs",
    "Ba, Kiros & Hinton 2016, arXiv:1607.06450",
    "To rebuild a network with torch's LayerNorm((C, H, W)); it fixes the image size: make_norm('ln-elementwise', 64, "
    "size=(28, 28)).",
    given="size",
    aliases=("ln-chw",),
)

# --- element-wise and mixed -----------------------------------------------------------------------------------------

_member(
    "evonorm-b0",
    "elementwise:EvoNormB0",
    "EvoNorm-B0",
    "y = weight * x / max(sqrt(var_ns + eps), v * x + sqrt(var_s + eps)) + bias",
    "Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967",
    "In the place of bn and its activation, with usual batches. Found by search; its paper claims better ImageNet "
    "accuracy than bn with ReLU or SiLU. It measures twice, in torch's operations.",
    batchwise=True,
    aliases=("evonormb0", "evonorm-b"),
)
_member(
    "evonorm-s0",
    "elementwise:EvoNormS0",
    "EvoNorm-S0",
    "y = weight * x * sigmoid(v * x) / sqrt(var_gs + eps) + bias",
    "Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967",
    "In the place of gn and its activation, at any batch size: gn of a gated x, uncentred. Its paper claims better "
    "accuracy than gn with ReLU at small batches.",
    aliases=("evonorms0", "evonorm-s"),
)
_member(
    "frn-tlu",
    "elementwise:FilterResponseTLU",
    "filter response normalization, thresholded",
    "y = max(weight * x / sqrt(mean_s(x^2) + eps) + bias, tau)",
    "Singh & Krishnan 2020, arXiv:1911.09737",
    "In the place of a norm and its activation, at any batch size: `frn` with the threshold that its paper learns for "
    "each channel. It costs frn and a pass. Its paper claims better ImageNet accuracy than bn and gn with ReLU, at all "
    "batch sizes.",
    aliases=("tlu",),
)
_member(
    "dyt",
    "elementwise:DyT",
    "dynamic tanh",
    "y = weight * tanh(alpha * x) + bias",
    "Zhu, Chen, He, LeCun & Liu 2025, arXiv:2503.10622",
    "In transformers, in the place of layer norm: no statistics, one element-wise pass. Its paper claims the same "
    "accuracy there, and that it does not replace bn in convolutional networks.",
    aliases=("dynamic-tanh",),
)
_member(
    "derf",
    "elementwise:Derf",
    "dynamic error function",
    "y = weight * erf(alpha * x + shift) + bias",
    "Chen, Lu, Zhu, Sun & Liu 2025, arXiv:2512.10938",
    "As dyt, with another curve. Its paper claims better results than layer norm, RMS norm and dyt.",
)
_member(
    "layerscale",
    "elementwise:LayerScale",
    "layer scale",
    "y = gamma * x",
    "Touvron, Cord, Sablayrolles, Synnaeve & Jegou 2021, arXiv:2103.17239",
    "At the end of a residual branch, small at first, beside a norm and not in its place. Its paper claims that deep "
    "vision transformers train.",
    aliases=("layer-scale",),
)

# --- with a condition -----------------------------------------------------------------------------------------------

_member(
    "cbn",
    "conditional:ConditionalBatchNorm",
    "conditional batch normalization",
    "y = weight[label] * (x - mean_ns) / sqrt(var_ns + eps) + bias[label]",
    "de Vries et al. 2017, arXiv:1707.00683; Dumoulin, Shlens & Kudlur 2017, arXiv:1610.07629",
    "In generators conditioned on a class: layer(x, labels). It costs bn and a look-up. The papers claim "
    "many styles or "
    "classes in one network.",
    given="condition",
    batchwise=True,
    aliases=("conditional-bn",),
)
_member(
    "adain",
    "conditional:AdaIN",
    "adaptive instance normalization",
    "y = std_s(style) * (x - mean_s) / sqrt(var_s + eps) + mean_s(style)",
    "Huang & Belongie 2017, arXiv:1703.06868",
    "To give an image the style of another: layer(x, style), features or a pair (scale, shift). It costs "
    "in, twice. Its "
    "paper claims transfer of any style in real time.",
    given="condition",
    instances=True,
)
_member(
    "film",
    "conditional:FiLM",
    "feature-wise linear modulation",
    "y = gamma(condition) * x + beta(condition)",
    "Perez, Strub, de Vries, Dumoulin & Courville 2018, arXiv:1709.07871",
    "To let a question, a time step or a task steer a network: layer(x, condition). No statistics. Its "
    "paper claims half "
    "the error of its time in visual reasoning.",
    given="condition",
)
_member(
    "adaln",
    "conditional:AdaLN",
    "adaptive layer normalization",
    "y = (1 + scale(condition)) * (x - mean_c) / sqrt(var_c + eps) + shift(condition), at every position",
    "Peebles & Xie 2023, arXiv:2212.09748",
    "In diffusion transformers: layer(tokens, condition). It costs layer norm and a linear layer of the condition.",
    given="condition",
)
_member(
    "adaln-zero",
    "conditional:AdaLNZero",
    "adaptive layer normalization, from zero",
    "as adaln, with gate(condition) for the residual branch; all three start at 0",
    "Peebles & Xie 2023, arXiv:2212.09748",
    "As adaln: y, gate = layer(tokens, condition), and every block starts as the identity. Its paper claims the best "
    "images of its four ways of conditioning.",
    given="condition",
)
_member(
    "spade",
    "conditional:SPADE",
    "spatially adaptive normalization",
    "y = (1 + gamma(map)) * (x - mean_ns) / sqrt(var_ns + eps) + beta(map), at every position",
    "Park, Liu, Wang & Zhu 2019, arXiv:1903.07291",
    "To make images from label maps: layer(x, map). It costs three convolutions. Its paper claims that the map is no "
    "longer washed away by normalization.",
    given="condition",
    batchwise=True,
)

# --- of weights -----------------------------------------------------------------------------------------------------

for _name, _function, _title, _formula, _paper, _when, _aliases in (
    (
        "ws",
        "standardize",
        "weight standardization",
        "w' = (w - mean) / sqrt(var + eps), over the inputs of each output",
        "Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1903.10520",
        "With gn at one or two images per device: `gn+ws`. It costs a pass over the weights. Its paper "
        "claims that this "
        "beats bn at large batches.",
        ("weight-standardization",),
    ),
    (
        "sws",
        "standardize_scaled",
        "scaled weight standardization",
        "w' = gain * (w - mean) / sqrt(max(var * inputs, eps))",
        "Brock, De & Smith 2021, arXiv:2101.08692 and arXiv:2102.06171",
        "In networks without normalization of activations: `sws` alone, or `none+sws`. Its papers claim "
        "ImageNet accuracy "
        "above bn's.",
        ("scaled-ws",),
    ),
    (
        "wn",
        "by_length",
        "weight normalization",
        "w' = g * v / norm(v), for each output",
        "Salimans & Kingma 2016, arXiv:1602.07868",
        "Where statistics of activations are not to be had: recurrent networks, reinforcement learning, generative "
        "models; with mean-only batch norm: `mobn+wn`.",
        ("weight-norm",),
    ),
    (
        "spectral",
        "by_largest_singular_value",
        "spectral normalization",
        "w' = w / sigma, the largest singular value",
        "Miyato, Kataoka, Koyama & Yoshida 2018, arXiv:1802.05957",
        "In discriminators of generative adversarial networks, and wherever a network's slope is to be "
        "bounded. One step "
        "of the power method in each forward pass in training.",
        ("spectral-norm",),
    ),
):
    _how = f"normlab.layers.weights:{_function}"
    _member(_name, "norms:no_norm", _title, _formula, _paper, _when, of_weights=_how, aliases=_aliases)
