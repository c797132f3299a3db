"""Networks of convolutions, and, as in the assignments, all layers under the same roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from normlab.scratch import nets
from normlab.scratch.course import fast_layers, layer_utils, layers
from normlab.scratch.course.fast_layers import *  # noqa: F403
from normlab.scratch.course.layer_utils import *  # noqa: F403
from normlab.scratch.course.layers import *  # noqa: F403

__all__ = ["ThreeLayerConvNet", *layers.__all__, *fast_layers.__all__, *layer_utils.__all__]


class ThreeLayerConvNet(nets.ConvNet):
    """conv - ReLU - 2x2 max pool - affine - ReLU - affine - softmax; the convolution keeps the size of the image.

    W1 (num_filters, C, filter_size, filter_size), W2, W3, b1, b2, b3. The weights are drawn from NumPy's global
    generator, W1 first.
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(input_dim, num_filters, filter_size, hidden_dim, num_classes, weight_scale, reg, dtype)
