"""Networks: `fc_net` of affine layers, `cnn` of convolutions."""
