"""The layers and losses, each a forward and a backward function with an explicit cache.

    out, cache = affine_forward(x, w, b)
    dx, dw, db = affine_backward(dout, cache)

`dout` is the gradient of the loss with respect to `out`; a backward function returns the loss's gradients with
respect to everything the forward function took.
"""

from normlab.scratch._batch import (
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
)
from normlab.scratch._batch_instance import spatial_batchinstancenorm_backward, spatial_batchinstancenorm_forward
from normlab.scratch._dense import (
    affine_backward,
    affine_forward,
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
)
from normlab.scratch._group import (
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
    spatial_instancenorm_backward,
    spatial_instancenorm_forward,
    spatial_layernorm_backward,
    spatial_layernorm_forward,
)
from normlab.scratch._images import (
    conv_backward_naive,
    conv_forward_naive,
    max_pool_backward_naive,
    max_pool_forward_naive,
)
from normlab.scratch._layer import layernorm_backward, layernorm_forward
from normlab.scratch._losses import softmax_loss, svm_loss

__all__ = [
    "affine_backward",
    "affine_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "conv_backward_naive",
    "conv_forward_naive",
    "dropout_backward",
    "dropout_forward",
    "layernorm_backward",
    "layernorm_forward",
    "max_pool_backward_naive",
    "max_pool_forward_naive",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchinstancenorm_backward",
    "spatial_batchinstancenorm_forward",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
    "spatial_instancenorm_backward",
    "spatial_instancenorm_forward",
    "spatial_layernorm_backward",
    "spatial_layernorm_forward",
    "svm_loss",
]
