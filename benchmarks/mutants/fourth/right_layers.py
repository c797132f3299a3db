"""The right layers of the fourth set: where each stands, and what a user would name it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.mutants.written import Right, by_name, right_of

FOLDER = Path(__file__).parent / "right"


right = right_of(FOLDER)

RIGHT: tuple[Right, ...] = (
    right("staged", "batchnorm_forward", "batch", "batchnorm_backward"),
    right("staged", "layernorm_forward", None, "layernorm_backward"),
    right("staged", "spatial_groupnorm_forward", None, "spatial_groupnorm_backward"),
    right("staged", "instancenorm_forward", None, "instancenorm_backward"),
    right("moved", "spatial_batchnorm_forward", None, "spatial_batchnorm_backward"),
    right("objects", "BatchNorm"),
    right("objects", "LayerNorm"),
    right("objects", "RMSNorm"),
    right("transformers", "LayerNorm"),
    right("transformers", "TextLayerNorm", "rms"),
    right("transformers", "BertNorm", "layer"),
    right("transformers", "ZeroInitNorm", "layer"),
    right("speech", "GlobalLayerNorm"),
    right("speech", "ChannelwiseLayerNorm"),
    right("vision", "BatchNorm2d"),
    right("vision", "LayerNorm2d"),
    right("vision", "GroupNorm"),
    right("vision", "InstanceNorm2d"),
    right("vision", "BatchInstanceNorm2d"),
    right("custom_grad", "FunctionBatchNorm"),
    right("custom_grad", "FunctionRMSNorm"),
    right("plain", "group_norm"),
    right("plain", "layer_norm"),
    right("plain", "batch_norm"),
)
BY_NAME = by_name(RIGHT)
