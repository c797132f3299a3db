"""Networks of affine layers, and, as in the assignments, all layers under the same roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from normlab.scratch import nets
from normlab.scratch.course import layer_utils, layers
from normlab.scratch.course.layer_utils import *  # noqa: F403
from normlab.scratch.course.layers import *  # noqa: F403

__all__ = ["FullyConnectedNet", "TwoLayerNet", *layers.__all__, *layer_utils.__all__]


class FullyConnectedNet(nets.FullyConnectedNet):
    """(affine - [norm] - ReLU - [dropout]) x len(hidden_dims) - affine - softmax.

    The arguments are those of `normlab.scratch.nets.FullyConnectedNet`, with two differences: the weights are drawn
    from NumPy's global generator, W1 first, and `seed` fixes the dropout mask alone.

    Args:
        dropout_keep_ratio: probability of KEEPING an activation; 1 is no dropout.
        dropout: the same under its older name; 0 is no dropout, too.
        use_batchnorm: the older way to write normalization="batchnorm".
        weight_scale: standard deviation of the weights.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        dropout_keep_ratio: float = 1,
        normalization: str | None = None,
        reg: float = 0.0,
        weight_scale: float = 1e-2,
        dtype: Any = np.float32,
        seed: int | None = None,
        *,
        dropout: float | None = None,
        use_batchnorm: bool = False,
    ) -> None:
        keep = dropout_keep_ratio if dropout is None else dropout
        super().__init__(
            hidden_dims,
            input_dim,
            num_classes,
            keep or 1,
            "batchnorm" if use_batchnorm else normalization,
            reg,
            weight_scale,
            dtype,
        )
        self.use_dropout = bool(self.dropout_param)
        if self.use_dropout:
            self.dropout_param["seed"] = seed

    def _dropout(self) -> None:
        if self.dropout_param:
            pair = layers.dropout_forward, layers.dropout_backward
            self.steps.append(nets.Step(*pair, (), (self.dropout_param,)))


class TwoLayerNet(FullyConnectedNet):
    """affine - ReLU - affine - softmax in float64: W1 (input_dim, hidden_dim), b1, W2 (hidden_dim, num_classes), b2."""

    def __init__(
        self,
        input_dim: int = 3 * 32 * 32,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
    ) -> None:
        super().__init__([hidden_dim], input_dim, num_classes, reg=reg, weight_scale=weight_scale, dtype=np.float64)
