"""Normalization layers as torch sees them: drop-in modules, and the ways to put them into a model."""

from __future__ import annotations

from normlab.layers.convert import ConvertReport, convert, convert_report, revert
from normlab.layers.freezing import freeze, recalibrate, unfreeze
from normlab.layers.fuse import fuse_norms
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
from normlab.layers.restore import restore_norms
from normlab.layers.swap import SwapReport, register_adapter, swap_norms, swap_report

__all__ = [
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelNorm",
    "ConvertReport",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "RunningNorm",
    "SwapReport",
    "constrain",
    "convert",
    "convert_report",
    "freeze",
    "fuse_norms",
    "make_norm",
    "parameter_groups",
    "recalibrate",
    "recomputed_outputs",
    "register_adapter",
    "restore_norms",
    "revert",
    "swap_norms",
    "swap_report",
    "takes_act",
    "unfreeze",
]
