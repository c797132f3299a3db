"""Layer normalization: every sample is standardized over its own features; training and testing are alike.

    out_d = gamma_d * xhat_d + beta_d,    xhat = (x - mean) / sqrt(var + eps),    mean and var over the D features

The backward pass is that of `_standardize` with m = D and g = gamma * dout,

    dx = (g - mean(g) - xhat * mean(g * xhat)) / std,

and here lies a trap. In batch norm the elements that are averaged share one gamma, which may be pulled out of the
means. In layer norm gamma varies along the very axis that is averaged: mean(gamma * dout) is not gamma * mean(dout).
Batch norm's closed form with the axis turned round has dgamma and dbeta right, and dx wrong, unless gamma is
constant, as it is in a new network. Standardization comes before gamma, so g is computed first, then the means.

dgamma and dbeta are sums over the samples, since every sample is scaled by the same gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.scratch import _checks as check
from normlab.scratch._standardize import standardize, standardize_backward

Cache = Any


def layernorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, ln_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Layer normalization: every sample is standardized over its features, then each feature scaled and shifted.

        out = gamma * (x - mean) / sqrt(var + eps) + beta

    x (N, D), gamma and beta (D,); out (N, D). `ln_param`: eps (default 1e-5). Ba et al., arXiv:1607.06450.
    """
    x = check.floats("x", x, ("N", "D"))
    gamma = check.like("gamma", gamma, x, (x.shape[1],))
    beta = check.like("beta", beta, x, (x.shape[1],))
    xhat, inverse, _, _ = standardize(x, (1,), check.eps("ln_param", ln_param))
    out = gamma * xhat
    out += beta
    return out, {"gamma": gamma, "xhat": xhat, "inverse": inverse}


def layernorm_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta) of layer normalization; the means of dx run over gamma * dout, not over dout."""
    gamma, xhat, inverse = cache["gamma"], cache["xhat"], cache["inverse"]
    check.check_shape("the x of cache", xhat, ("N", "D"))
    dout = check.like("dout", dout, xhat, xhat.shape)
    dbeta = dout.sum(0)
    dgamma = (dout * xhat).sum(0)
    dxhat = dout * gamma
    dx = standardize_backward(dxhat, xhat, inverse, (1,))
    return dx, dgamma, dbeta
