"""Bugs in the norms that pool within a sample: layer, instance, group, RMS."""

from __future__ import annotations

from normlab.check.mutants.base import mutant

VAR2 = "var = (centred * centred).mean(2, keepdim=True)"
LAST_VAR = "var = (centred * centred).mean(-1, keepdim=True)"
WIDE = "wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x"
DX = "dx = (g - mean_term - var_term) / std"
NP_DX = "dx = (dxhat - mean_term - var_term) / std"
I_VAR = "var = (centred * centred).mean(axes, keepdim=True)"
I_OUT = "y = self.weight.reshape(shape) * xhat + self.bias.reshape(shape)"

LAYER = (
    # NumPy
    mutant(
        *("layer-numpy-axis-0", "layer_numpy", "forward", "pools-feature", "mean = x.mean(axis=1", "mean = x.mean(axis=0"),
        *("var = (centred**2).mean(axis=1", "var = (centred**2).mean(axis=0"),
    ),
    mutant("layer-numpy-eps-outside", "layer_numpy", "forward", "eps-outside-root", "np.sqrt(var + eps)", "(np.sqrt(var) + eps)"),
    mutant(
        *("layer-numpy-ddof-1", "layer_numpy", "forward", "unbiased-normalization"),
        *("var = (centred**2).mean(axis=1, keepdims=True)", "var = x.var(axis=1, keepdims=True, ddof=1)"),
    ),
    mutant("layer-numpy-no-mean-term", "layer_numpy", "backward", "dx-mean-term-missing", NP_DX, "dx = (dxhat - var_term) / std"),
    mutant(
        *("layer-numpy-dx-axis-0", "layer_numpy", "backward", "dx-pools-feature"),
        *("dxhat.mean(axis=1", "dxhat.mean(axis=0", "(dxhat * xhat).mean(axis=1", "(dxhat * xhat).mean(axis=0"),
    ),
    mutant(
        *("layer-numpy-gamma-after", "layer_numpy", "backward", "dx-weight-after-means"),
        *("dxhat = dout * gamma", "dxhat = dout", NP_DX, "dx = gamma * (dxhat - mean_term - var_term) / std"),
    ),
    mutant("layer-numpy-dbeta-mean", "layer_numpy", "backward", "dbias-mean", "dout.sum(axis=0)", "dout.mean(axis=0)"),
    mutant("layer-numpy-dgamma-dout", "layer_numpy", "backward", "dweight-is-dbias", "dgamma = (dout * xhat)", "dgamma = dout"),
    mutant("layer-numpy-difference-of-squares", "layer_numpy", "numerics", "cancellation", "var = (centred**2).mean(axis=1, keepdims=True)", "var = (x**2).mean(axis=1, keepdims=True) - mean**2"),
    mutant("layer-numpy-in-place", "layer_numpy", "layout", "changes-input", "centred = x - mean", "x -= mean\n    centred = x"),
    # torch
    mutant(
        *("layer-annotated", "layer_torch", "forward", "unbiased-normalization"),
        *("std = torch.sqrt(var + eps)", "std = x.std(-1, keepdim=True) + eps"),
    ),
    mutant("layer-no-eps", "layer_torch", "forward", "eps-missing", "torch.sqrt(var + eps)", "torch.sqrt(var)"),
    mutant("layer-eps-squared", "layer_torch", "forward", "eps-squared", "torch.sqrt(var + eps)", "torch.sqrt(var + eps**2)"),
    mutant(
        *("layer-two-axes", "layer_torch", "forward", "pools-too-many-axes", "mean = x.mean(-1, keepdim=True)"),
        "mean = x.mean((-2, -1), keepdim=True)",
        *(LAST_VAR, "var = (centred * centred).mean((-2, -1), keepdim=True)"),
    ),
    mutant("layer-not-centred", "layer_torch", "forward", "mean-not-subtracted", "xhat = centred / std", "xhat = x / std"),
    mutant("layer-beta-subtracted", "layer_torch", "forward", "bias-subtracted", "weight * xhat + bias", "weight * xhat - bias"),
    mutant("layer-gamma-twice", "layer_torch", "forward", "weight-twice", "return weight * xhat + bias", "return weight * (weight * xhat) + bias"),
    mutant("layer-no-variance-term", "layer_torch", "backward", "dx-variance-term-missing", DX, "dx = (g - mean_term) / std"),
    mutant("layer-statistics-constant", "layer_torch", "backward", "dx-statistics-constant", DX, "dx = g / std"),
    mutant("layer-gamma-after", "layer_torch", "backward", "dx-weight-after-means", "g = dy * weight", "g = dy", DX, "dx = weight * (g - mean_term - var_term) / std"),
    mutant("layer-dgamma-undivided", "layer_torch", "backward", "dweight-not-normalized", "(dy * xhat).sum(rows)", "(dy * xhat * std).sum(rows)"),
    mutant("layer-dx-sums", "layer_torch", "backward", "dx-sums-not-means", "g.mean(-1", "g.sum(-1", "(g * xhat).mean(-1", "(g * xhat).sum(-1"),
    mutant("layer-difference-of-squares", "layer_torch", "numerics", "cancellation", LAST_VAR, "var = (x * x).mean(-1, keepdim=True) - mean * mean"),
    mutant("layer-half-statistics", "layer_torch", "numerics", "half-precision-statistics", WIDE, "wide = x"),
    mutant("layer-returns-float32", "layer_torch", "numerics", "output-dtype", "return y.to(x.dtype)", "return y"),
    mutant("layer-views", "layer_torch", "layout", "view-of-noncontiguous", "mean = x.mean(-1, keepdim=True)", "mean = x.view(-1, x.shape[-1]).mean(-1).view(*x.shape[:-1], 1)"),
    mutant("layer-twice-differentiable", "layer_torch", "backward", "double-backward-wrong", "    @once_differentiable\n", ""),
    mutant(
        *("layer-saved-on-class", "layer_torch", "state", "kept-on-layer"),
        *("ctx.save_for_backward(xhat, std, weight)", "_LayerNormalize.saved = (xhat, std, weight)"),
        *("ctx.saved_tensors", "_LayerNormalize.saved"),
    ),
)

RMS = (
    mutant(
        *("rms-centred", "rms_torch", "forward", "layer-norm-for-rms", "mean_square = (x * x)"),
        "x = x - x.mean(-1, keepdim=True)\n        mean_square = (x * x)",
    ),
    mutant("rms-variance", "rms_torch", "forward", "variance-for-rms", "(x * x).mean(-1, keepdim=True)", "x.var(-1, keepdim=True, unbiased=False)"),
    mutant("rms-sum", "rms_torch", "forward", "sum-for-mean", "(x * x).mean(", "(x * x).sum("),
    mutant("rms-eps-outside", "rms_torch", "forward", "eps-outside-root", "torch.sqrt(mean_square + eps)", "(torch.sqrt(mean_square) + eps)"),
    mutant("rms-no-root", "rms_torch", "forward", "root-missing", "torch.sqrt(mean_square + eps)", "(mean_square + eps)"),
    mutant("rms-one-plus-weight", "rms_torch", "forward", "weight-plus-one", "return weight * xhat", "return (1 + weight) * xhat"),
    mutant("rms-n-minus-one", "rms_torch", "forward", "unbiased-normalization", "(x * x).mean(-1, keepdim=True)", "(x * x).sum(-1, keepdim=True) / (x.shape[-1] - 1)"),
    mutant("rms-constant-rms", "rms_torch", "backward", "dx-statistics-constant", "(g - xhat * (g * xhat).mean(-1, keepdim=True)) / rms", "g / rms"),
    mutant("rms-layer-norm-dx", "rms_torch", "backward", "dx-layer-norm-for-rms", "dx = (g - xhat", "dx = (g - g.mean(-1, keepdim=True) - xhat"),
    mutant("rms-plus", "rms_torch", "backward", "dx-variance-sign", "(g - xhat", "(g + xhat"),
    mutant("rms-weight-after", "rms_torch", "backward", "dx-weight-after-means", "g = dy * weight", "g = dy", "dx = (g -", "dx = weight * (g -"),
    mutant("rms-dweight-from-output", "rms_torch", "backward", "dweight-from-output", "(dy * xhat).sum(tuple", "(dy * weight * xhat).sum(tuple"),
    mutant("rms-dx-sum", "rms_torch", "backward", "dx-sums-not-means", "(g * xhat).mean(", "(g * xhat).sum("),
    mutant("rms-zero-weight", "rms_torch", "state", "initial-weight", "torch.ones(dim)", "torch.zeros(dim)"),
    mutant("rms-half-squares", "rms_torch", "numerics", "half-precision-statistics", WIDE, "wide = x"),
    mutant("rms-returns-float32", "rms_torch", "numerics", "output-dtype", "return y.to(x.dtype)", "return y"),
    mutant(
        *("rms-drops-tail", "rms_torch", "layout", "some-sizes", "mean_square = (x * x).mean(-1, keepdim=True)"),
        "d = x.shape[-1]\n        full = d if d < 8 else d // 8 * 8\n"
        "        mean_square = (x[..., :full] ** 2).sum(-1, keepdim=True) / d",
    ),
    mutant("rms-broadcasts", "rms_torch", "layout", "wrong-channels-accepted", '        if x.shape[-1:] != self.weight.shape:\n            raise ValueError(f"expected (*, {self.weight.numel()}), got {tuple(x.shape)}")\n', ""),
)

INSTANCE = (
    mutant("instance-batch-axes", "instance_torch", "forward", "pools-batch", "axes = tuple(range(2, x.ndim))", "axes = (0, *range(2, x.ndim))"),
    mutant("instance-layer-axes", "instance_torch", "forward", "pools-layer", "axes = tuple(range(2, x.ndim))", "axes = tuple(range(1, x.ndim))"),
    mutant("instance-var-default", "instance_torch", "forward", "unbiased-normalization", I_VAR, "var = wide.var(axes, keepdim=True)"),
    mutant("instance-eps-outside", "instance_torch", "forward", "eps-outside-root", "torch.sqrt(var + self.eps)", "(torch.sqrt(var) + self.eps)"),
    mutant("instance-eps-built-in", "instance_torch", "forward", "eps-ignored", "torch.sqrt(var + self.eps)", "torch.sqrt(var + 1e-5)"),
    mutant("instance-no-affine", "instance_torch", "forward", "affine-missing", I_OUT, "y = xhat + 0 * self.weight.reshape(shape)"),
    mutant("instance-second-moment", "instance_torch", "forward", "second-moment-for-variance", I_VAR, "var = (wide * wide).mean(axes, keepdim=True)"),
    mutant("instance-beta-first", "instance_torch", "forward", "bias-before-weight", I_OUT, "y = self.weight.reshape(shape) * (xhat + self.bias.reshape(shape))"),
    mutant(
        *("instance-detached", "instance_torch", "backward", "dx-statistics-constant"),
        *("mean = wide.mean(axes, keepdim=True)", "mean = wide.detach().mean(axes, keepdim=True)"),
        *(I_VAR, "var = (centred * centred).mean(axes, keepdim=True).detach()"),
    ),
    mutant("instance-variance-detached", "instance_torch", "backward", "dx-variance-term-missing", I_VAR, "var = (centred * centred).detach().mean(axes, keepdim=True)"),
    mutant("instance-mean-detached", "instance_torch", "backward", "dx-mean-term-missing", "mean = wide.mean(axes, keepdim=True)", "mean = wide.detach().mean(axes, keepdim=True)"),
    mutant("instance-cut-graph", "instance_torch", "backward", "dx-zero", "axes = tuple(range(2, x.ndim))", "wide = wide.detach()\n        axes = tuple(range(2, x.ndim))"),
    mutant("instance-difference-of-squares", "instance_torch", "numerics", "cancellation", I_VAR, "var = (wide * wide).mean(axes, keepdim=True) - mean * mean"),
    mutant("instance-half-statistics", "instance_torch", "numerics", "half-precision-statistics", WIDE, "wide = x"),
    mutant("instance-views", "instance_torch", "layout", "view-of-noncontiguous", "mean = wide.mean(axes, keepdim=True)", "mean = wide.view(len(x), x.shape[1], -1).mean(2).reshape(len(x), -1, *[1] * len(axes))"),
    mutant("instance-squeezes", "instance_torch", "layout", "one-sample", "mean = wide.mean(axes, keepdim=True)", "mean = wide.mean(axes).squeeze()\n        mean = mean.reshape(*mean.shape, *[1] * len(axes)) if len(x) > 1 else mean.mean()"),
)

GROUP = (
    # NumPy
    mutant(
        *("group-numpy-interleaved", "group_numpy", "forward", "groups-interleaved"),
        *("grouped = x.reshape(N, G, C // G, H, W)", "grouped = x.reshape(N, C // G, G, H, W).transpose(0, 2, 1, 3, 4)"),
        *("(centred / std).reshape(N, C, H, W)", "(centred / std).transpose(0, 2, 1, 3, 4).reshape(N, C, H, W)"),
    ),
    mutant("group-numpy-channels-only", "group_numpy", "forward", "pools-channels-only", "grouped.mean(axis=(2, 3, 4)", "grouped.mean(axis=2", "(centred**2).mean(axis=(2, 3, 4)", "(centred**2).mean(axis=2"),
    mutant("group-numpy-ddof-1", "group_numpy", "forward", "unbiased-normalization", "(centred**2).mean(axis=(2, 3, 4), keepdims=True)", "grouped.var(axis=(2, 3, 4), keepdims=True, ddof=1)"),
    mutant("group-numpy-dx-per-channel", "group_numpy", "backward", "dx-pools-channel", "dxhat.mean(axis=(2, 3, 4)", "dxhat.mean(axis=(3, 4)", "(dxhat * xhat).mean(axis=(2, 3, 4)", "(dxhat * xhat).mean(axis=(3, 4)"),
    mutant("group-numpy-no-variance-term", "group_numpy", "backward", "dx-variance-term-missing", NP_DX, "dx = (dxhat - mean_term) / std"),
    mutant("group-numpy-dgamma-negative", "group_numpy", "backward", "dweight-sign", "dgamma = (dout * xhat)", "dgamma = -(dout * xhat)"),
    mutant("group-numpy-dbeta-repeated", "group_numpy", "backward", "dbias-pools-feature", "dbeta = dout.sum(axis=(0, 2, 3))", "dbeta = np.repeat(dout.reshape(N, G, C // G, H, W).sum(axis=(0, 2, 3, 4)), C // G)"),
    # torch
    mutant("group-size-for-count", "group_torch", "forward", "group-size-for-count", "weight, bias, self.num_groups, self.eps", "weight, bias, self.num_channels // self.num_groups, self.eps"),
    mutant("group-as-instance", "group_torch", "forward", "pools-instance", "weight, bias, self.num_groups, self.eps", "weight, bias, self.num_channels, self.eps"),
    mutant("group-as-layer", "group_torch", "forward", "pools-layer", "weight, bias, self.num_groups, self.eps", "weight, bias, 1, self.eps"),
    mutant("group-eps-outside", "group_torch", "forward", "eps-outside-root", "torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)"),
    mutant("group-var-default", "group_torch", "forward", "unbiased-normalization", VAR2, "var = grouped.var(2, keepdim=True)"),
    mutant("group-no-root", "group_torch", "forward", "root-missing", "torch.sqrt(var + eps)", "(var + eps)"),
    mutant(
        *("group-weight-per-group", "group_torch", "forward", "weight-per-group", "y = weight.reshape(1, c, 1) * xhat + bias.reshape(1, c, 1)"),
        "k = c // groups\n        y = weight[:groups].repeat_interleave(k).reshape(1, c, 1) * xhat + bias[:groups].repeat_interleave(k).reshape(1, c, 1)",
    ),
    mutant("group-gamma-after", "group_torch", "backward", "dx-weight-after-means", "g = (flat * weight.reshape(1, c, 1)).reshape", "g = flat.reshape", DX, DX + "\n        dx = dx.reshape(n, c, -1) * weight.reshape(1, c, 1)"),
    mutant("group-no-mean-term", "group_torch", "backward", "dx-mean-term-missing", DX, "dx = (g - var_term) / std"),
    mutant("group-statistics-constant", "group_torch", "backward", "dx-statistics-constant", DX, "dx = g / std"),
    mutant("group-dgamma-mean", "group_torch", "backward", "dweight-mean", "dweight = (flat * xhat).sum((0, 2))", "dweight = (flat * xhat).mean((0, 2))"),
    mutant("group-twice-differentiable", "group_torch", "backward", "double-backward-wrong", "    @once_differentiable\n", ""),
    mutant("group-difference-of-squares", "group_torch", "numerics", "cancellation", VAR2, "var = (grouped * grouped).mean(2, keepdim=True) - mean * mean"),
    mutant("group-half-statistics", "group_torch", "numerics", "half-precision-statistics", WIDE, "wide = x"),
    mutant(
        *("group-matrix", "group_torch", "numerics", "inf-spreads", "mean = grouped.mean(2, keepdim=True)"),
        "member = torch.eye(groups, dtype=x.dtype).repeat_interleave(c // groups, 0)\n"
        "        mean = (x.reshape(n, c, -1).mean(2) @ member / (c // groups)).reshape(n, groups, 1)",
    ),
    mutant("group-views", "group_torch", "layout", "view-of-noncontiguous", "grouped = x.reshape(n, groups, -1)", "grouped = x.view(n, groups, -1)"),
    mutant("group-gradient-views", "group_torch", "layout", "view-of-noncontiguous", "flat = dy.reshape(n, c, -1)", "flat = dy.view(n, c, -1)"),
    mutant(
        *("group-memory-order", "group_torch", "layout", "ignores-strides", "grouped = x.reshape(n, groups, -1)"),
        "grouped = x.as_strided((n, groups, x.numel() // n // groups), (x.numel() // n, x.numel() // n // groups, 1))",
    ),
    mutant(
        *("group-any-groups", "group_torch", "layout", "indivisible-groups"),
        '        if num_channels % num_groups:\n            raise ValueError(f"num_channels {num_channels} must be divisible by num_groups {num_groups}")\n',
        "",
    ),
)
