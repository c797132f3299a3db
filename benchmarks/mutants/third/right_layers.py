"""The right layers of the third set: where each stands, and what a user would name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "right"


@dataclass(frozen=True)
class Right:
    """A layer that is right: a file, the names in it, and the kind that a user would give with --as (or None)."""

    file: str
    target: str
    kind: str | None
    backward: str | None = None

    @property
    def name(self) -> str:
        return f"{self.file}:{self.target}" + (f",{self.backward}" if self.backward else "")

    def source(self) -> str:
        return (FOLDER / f"{self.file}.py").read_text()


RIGHT: tuple[Right, ...] = (
    Right("grad_enabled", "batch_norm", None),
    Right("grad_enabled", "BatchNorm", None),
    Right("assignment", "batchnorm_forward", None, "batchnorm_backward"),
    Right("assignment", "batchnorm_forward", "batch", "batchnorm_backward_alt"),
    Right("assignment", "layernorm_forward", None, "layernorm_backward"),
    Right("assignment", "spatial_batchnorm_forward", None, "spatial_batchnorm_backward"),
    Right("assignment", "spatial_groupnorm_forward", None, "spatial_groupnorm_backward"),
    Right("from_scratch", "BatchNormalization", None),
    Right("from_scratch", "BatchNormTorchMomentum", None),
    Right("from_scratch", "LayerNormDict", "layer"),
    Right("from_scratch", "BatchNorm2D", None),
    Right("from_scratch", "InstanceNormLayer", None),
    Right("modules", "LayerNormAB", None),
    Right("modules", "LayerNormAlpha", None),
    Right("modules", "LayerNormShape", None),
    Right("modules", "SequenceNorm", "layer"),
    Right("modules", "RMSNorm", None),
    Right("modules", "OnePlusRMSNorm", None),
    Right("modules", "GroupNorm", None),
    Right("modules", "InstanceNorm", None),
    Right("modules", "BatchNormParameterStats", None),
    Right("modules", "BatchNormExp", None),
    Right("modules", "ChannelLayerNorm", None),
    Right("modules", "BatchInstanceNorm", None),
    Right("channels_last", "batch_norm_nhwc", None),
    Right("channels_last", "instance_norm_nhwc", None),
    Right("channels_last", "group_norm_nhwc", None),
    Right("channels_last", "layer_norm", None),
    Right("channels_last", "rms_norm", None),
    Right("channels_last", "rmsnorm_forward", None, "rmsnorm_backward"),
    Right("functions", "layernorm_fwd", None, "layernorm_bwd"),
    Right("functions", "batch_norm", None),
    Right("functions", "GroupNorm", None),
    Right("functions", "instance_norm", None),
    Right("functions", "bn_forward", None, "bn_backward"),
    Right("functions", "BatchNorm1d", None),
    Right("functions", "LayerNorm", None),
    Right("rearranged", "EinopsGroupNorm", None),
    Right("rearranged", "einops_instance_norm", None),
    Right("permuted", "LayerNorm2d", None),
    Right("permuted", "BatchNormFlat", None),
    Right("permuted", "ScaleOnlyLayerNorm", None),
    Right("permuted", "RootMeanSquare", None),
    Right("permuted", "Normalize", "batch"),
    Right("permuted", "build_group_norm", None),
)
BY_NAME = {r.name: r for r in RIGHT}
