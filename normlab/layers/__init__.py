"""Normalization layers as torch sees them: drop-in modules, and the ways to put them into a model."""

from __future__ import annotations

from normlab.layers.norms import (
    BatchInstanceNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    Norm,
    RunningNorm,
    constrain,
    make_norm,
    parameter_groups,
    takes_act,
)
from normlab.layers.positions import ChannelNorm, LayerNorm, RMSNorm
from normlab.layers.ranked import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
)
from normlab.layers.recomputing import recomputed_outputs
from normlab.layers.swap import fuse_norms, swap_norms

__all__ = [
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelNorm",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "RunningNorm",
    "constrain",
    "fuse_norms",
    "make_norm",
    "parameter_groups",
    "recomputed_outputs",
    "swap_norms",
    "takes_act",
]
