"""Batch-instance normalization: every channel mixes its batch-normalized and its instance-normalized value.

    out = gamma * (rho * xhat_B + (1 - rho) * xhat_I) + beta

xhat_B is x standardized over the batch (N * H * W elements a channel), xhat_I over each image alone (H * W elements),
and the gate rho in [0, 1] is learned, one number a channel: the network decides for each channel whether the contrast
and brightness of an image are information (keep them: rho = 1) or style (remove them: rho = 0).

The backward pass. Let g = gamma * dout arrive at the mixture. Three things enter the mixture:

    drho     = sum g * (xhat_B - xhat_I)      over the N * H * W elements of the channel
    dxhat_B  = rho * g                        which goes back through the batch's mean and variance
    dxhat_I  = (1 - rho) * g                  which goes back through each image's mean and variance

and x, from which two branches left, receives the sum of what comes back along both. In testing the first branch ends
at the running statistics, which are constants; the second is the same as in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.scratch import _checks as check
from normlab.scratch._batch import Param, per_channel, standardize_batch, standardize_batch_backward
from normlab.scratch._standardize import standardize, standardize_backward

Cache = Any


def spatial_batchinstancenorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, rho: np.ndarray, bin_param: Param
) -> tuple[np.ndarray, Cache]:
    """Batch-instance normalization of images: a learned mixture of batch and instance norm, channel by channel.

        out = gamma * (rho * xhat_B + (1 - rho) * xhat_I) + beta

    x (N, C, H, W), gamma, beta and rho (C,); out (N, C, H, W). `bin_param` is the `bn_param` of
    `spatial_batchnorm_forward`: mode, eps, momentum, running_mean, running_var. rho is used as it is; keep it in
    [0, 1] by clipping after every update. Nam and Kim, arXiv:1805.07925.
    """
    x = check.floats("x", x, ("N", "C", "H", "W"))
    gamma, beta, rho = (
        check.like(name, value, x, (x.shape[1],)) for name, value in (("gamma", gamma), ("beta", beta), ("rho", rho))
    )
    batch = standardize_batch(x, bin_param, "bin_param")
    xhat_i, inverse_i, _, _ = standardize(x, (2, 3), batch["eps"])
    gate = per_channel(rho, x)
    mixed = gate * batch["xhat"] + (1 - gate) * xhat_i
    out = per_channel(gamma, x) * mixed
    out += per_channel(beta, x)
    return out, {"batch": batch, "xhat_i": xhat_i, "inverse_i": inverse_i, "mixed": mixed, "gamma": gamma, "rho": rho}


def spatial_batchinstancenorm_backward(
    dout: np.ndarray, cache: Cache
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta, drho) of batch-instance normalization."""
    batch, xhat_i, inverse_i = cache["batch"], cache["xhat_i"], cache["inverse_i"]
    dout = check.like("dout", dout, xhat_i, xhat_i.shape)
    dbeta = dout.sum((0, 2, 3))
    dgamma = (dout * cache["mixed"]).sum((0, 2, 3))
    g = dout * per_channel(cache["gamma"], dout)
    drho = (g * (batch["xhat"] - xhat_i)).sum((0, 2, 3))
    gate = per_channel(cache["rho"], dout)
    dx = standardize_batch_backward(gate * g, batch)
    dx += standardize_backward((1 - gate) * g, xhat_i, inverse_i, (2, 3))
    return dx, dgamma, dbeta, drho
