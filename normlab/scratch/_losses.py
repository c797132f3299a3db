"""Losses of a classifier: the mean over the samples, and its gradient with respect to the scores."""

from __future__ import annotations

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check


def softmax_loss(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Cross entropy of the softmax of the scores, averaged over the samples; returns (loss, dx).

        loss = mean over n of -log p[n, y_n],  p[n, c] = exp(x_nc) / sum over k of exp(x_nk)

    and dx = (p - one_hot(y)) / N. x (N, C), y (N,) integers in [0, C); dx in the dtype of x. The largest score
    of each row is subtracted first, which changes nothing but the overflow.
    """
    x, y, rows = _arguments(x, y)
    shifted = x - x.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    dx = np.exp(log_p)
    dx[rows, y] -= 1
    dx /= len(x)
    return float(-log_p[rows, y].mean()), dx


def svm_loss(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Multiclass hinge loss with margin 1, averaged over the samples; returns (loss, dx).

        loss = mean over n of sum over c != y_n of max(0, x_nc - x_n,y_n + 1)

    Each violated margin pulls its class down and the true class up by 1 / N. Shapes as for `softmax_loss`.
    """
    x, y, rows = _arguments(x, y)
    margins = np.maximum(0, x - x[rows, y][:, None] + 1)
    margins[rows, y] = 0
    dx = (margins > 0).astype(x.dtype)
    dx[rows, y] = -dx.sum(1)
    dx /= len(x)
    return float(margins.sum() / len(x)), dx


def _arguments(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = check.floats("x", x, ("N", "C"))
    if 0 in x.shape:
        raise UsageError(f"x has shape {x.shape}; a mean loss needs at least one sample and one class")
    return x, check.labels("y", y, *x.shape), np.arange(len(x))
