"""Published experiments as commands: each re-runs one and says, finding by finding, whether it holds.

An experiment is a module of `normlab.reproduce.experiments` with a function `run(setting) -> Result`; a row in
`EXPERIMENTS` names it. `normlab reproduce` runs it and writes a page, its figures and its numbers.
"""

from __future__ import annotations

# name -> what it does; its module is normlab.reproduce.experiments.NAME with underscores
EXPERIMENTS = {
    "gradients": "Every hand-written gradient against numerical ones; what normalization leaves of mean and std.",
    "optimizers": "SGD, momentum, RMSProp and Adam on a six-layer network.",
    "lr-by-weight-scale": "A grid of learning rates and weight scales, then an automatic search at the same budget.",
    "batchnorm": "A deep network on 1,000 images, with and without batch normalization.",
    "batchnorm-backward-speed": "The step-by-step backward pass of batch norm against the simplified one.",
    "weight-scale": "Twenty scales of the initial weights, with and without batch normalization.",
    "batch-size": "Batch and layer normalization at batch sizes 5, 10 and 50.",
    "dropout": "Dropout: the gap between training and validation, both kinds, and with normalization.",
    "convnet": "A small convolutional network: overfits 100 images; with and without normalization.",
    "convolution-filters": "Two photographs through grayscale and edge filters, as convolutions.",
    "convolution-speed": "Convolution by nested loops, compiled, and by torch.",
    "open-ended": "A convolutional network in torch, as Module and Sequential, and its settings varied.",
    "resnet-variants": "ResNet-14 with each of seven normalization variants.",
    "augmentation": "Against overfitting: augmentation, weight decay and both, with and without a norm.",
    "initial-affine": "Batch norm whose weight and bias start elsewhere than at 1 and 0.",
    "ensembles": "The networks of resnet-variants together against the best of them.",
    "first-layer-filters": "The first filters of the networks of resnet-variants, beside those that they started from.",
    "feature-evolution": "How features drift over the epochs, in the networks of resnet-variants.",
    "resnet-batch-size": "Batch and group normalization at batch sizes 8, 32 and 128, equal epochs and equal updates.",
    "photographs": "Six norms, three optimizers, two learning rates, on a folder of photographs.",
    "photographs-batch-size": "Batch and group norm at batch sizes 8, 32 and 128, on a folder of photographs.",
    "grad-cam": "Where networks with six norms look, on images they get right and wrong.",
}
# those that are specs for the study engine, whose length can be chosen
COMPARISONS = (
    "resnet-variants",
    "augmentation",
    "initial-affine",
    "ensembles",
    "first-layer-filters",
    "feature-evolution",
    "resnet-batch-size",
    "photographs",
    "photographs-batch-size",
    "grad-cam",
)
