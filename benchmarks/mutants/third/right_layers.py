"""The right layers of the third set: where each stands, and what a user would name it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.mutants.written import Right, by_name, right_of

FOLDER = Path(__file__).parent / "right"


right = right_of(FOLDER)

RIGHT: tuple[Right, ...] = (
    right("grad_enabled", "batch_norm"),
    right("grad_enabled", "BatchNorm"),
    right("assignment", "batchnorm_forward", None, "batchnorm_backward"),
    right("assignment", "batchnorm_forward", "batch", "batchnorm_backward_alt"),
    right("assignment", "layernorm_forward", None, "layernorm_backward"),
    right("assignment", "spatial_batchnorm_forward", None, "spatial_batchnorm_backward"),
    right("assignment", "spatial_groupnorm_forward", None, "spatial_groupnorm_backward"),
    right("from_scratch", "BatchNormalization"),
    right("from_scratch", "BatchNormTorchMomentum"),
    right("from_scratch", "LayerNormDict", "layer"),
    right("from_scratch", "BatchNorm2D"),
    right("from_scratch", "InstanceNormLayer"),
    right("modules", "LayerNormAB"),
    right("modules", "LayerNormAlpha"),
    right("modules", "LayerNormShape"),
    right("modules", "SequenceNorm", "layer"),
    right("modules", "RMSNorm"),
    right("modules", "OnePlusRMSNorm"),
    right("modules", "GroupNorm"),
    right("modules", "InstanceNorm"),
    right("modules", "BatchNormParameterStats"),
    right("modules", "BatchNormExp"),
    right("modules", "ChannelLayerNorm"),
    right("modules", "BatchInstanceNorm"),
    right("channels_last", "batch_norm_nhwc"),
    right("channels_last", "instance_norm_nhwc"),
    right("channels_last", "group_norm_nhwc"),
    right("channels_last", "layer_norm"),
    right("channels_last", "rms_norm"),
    right("channels_last", "rmsnorm_forward", None, "rmsnorm_backward"),
    right("functions", "layernorm_fwd", None, "layernorm_bwd"),
    right("functions", "batch_norm"),
    right("functions", "GroupNorm"),
    right("functions", "instance_norm"),
    right("functions", "bn_forward", None, "bn_backward"),
    right("functions", "BatchNorm1d"),
    right("functions", "LayerNorm"),
    right("rearranged", "EinopsGroupNorm"),
    right("rearranged", "einops_instance_norm"),
    right("permuted", "LayerNorm2d"),
    right("permuted", "BatchNormFlat"),
    right("permuted", "ScaleOnlyLayerNorm"),
    right("permuted", "RootMeanSquare"),
    right("permuted", "Normalize", "batch"),
    right("permuted", "build_group_norm"),
)
BY_NAME = by_name(RIGHT)
