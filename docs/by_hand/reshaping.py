"""Batch norm of images by rows: the channels are brought to the end, and every pixel is a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.scratch.layers import batchnorm_backward_alt, batchnorm_forward


def spatial_batchnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, bn_param: dict[str, Any]
) -> tuple[np.ndarray, Any]:
    """Batch norm of x (N, C, H, W), gamma and beta (C,), as batch norm of the (N * H * W, C) array of its pixels."""
    samples, channels, height, width = x.shape
    rows = x.transpose(0, 2, 3, 1).reshape(-1, channels)
    out, cache = batchnorm_forward(rows, gamma, beta, bn_param)
    return out.reshape(samples, height, width, channels).transpose(0, 3, 1, 2), cache


def spatial_batchnorm_backward(dout: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dgamma, dbeta): in by the same way, and back by the reverse of it."""
    samples, channels, height, width = dout.shape
    rows = dout.transpose(0, 2, 3, 1).reshape(-1, channels)
    dx, dgamma, dbeta = batchnorm_backward_alt(rows, cache)
    return dx.reshape(samples, height, width, channels).transpose(0, 3, 1, 2), dgamma, dbeta
