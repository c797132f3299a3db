"""A network from nothing but NumPy: the engine a learner reads, and fast enough to be used.

Every layer is a pair of functions with an explicit cache between them::

    out, cache = affine_forward(x, w, b)
    dx, dw, db = affine_backward(dout, cache)

Arrays are (N, D) or (N, C, H, W), float32 or float64; what comes out has the dtype of `x`.

`layers`          affine, ReLU, normalization, dropout, convolution and max pooling as nested loops, losses
`im2col_layers`   the same convolution and max pooling as matrix products
`fast_layers`     the same convolution and max pooling, compiled: the one module that needs Numba
`optim`           SGD, momentum, RMSProp, Adam
`nets`            `FullyConnectedNet` and `ConvNet`
`solver`          `Solver`: the training loop, with checkpoints and exact resume
`gradient_check`  numerical gradients to compare the hand-written ones with
"""
