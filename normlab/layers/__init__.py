"""Normalization layers as torch sees them: drop-in modules, and the ways to put them into a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normlab.layers.convert import ConvertReport, convert, convert_report, revert
from normlab.layers.folding import FoldReport, fold, fold_report
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

if TYPE_CHECKING:
    from normlab.layers.batches import (
        BatchRenorm,
        FrozenBatchNorm,
        GhostBatchNorm,
        GlobalResponseNorm,
        InstanceBatchNorm,
        SwitchableNorm,
    )
    from normlab.layers.conditional import SPADE, AdaIN, AdaLN, AdaLNZero, ConditionalBatchNorm, FiLM, modulate
    from normlab.layers.dialects import from_flax, from_keras, from_onnx, to_flax, to_keras, to_onnx
    from normlab.layers.elementwise import (
        AdaNorm,
        Derf,
        DivisiveNorm,
        DyT,
        ElementwiseLayerNorm,
        EvoNormB0,
        EvoNormS0,
        FilterResponseTLU,
        GroupWeightNorm,
        LayerScale,
        LocalResponseNorm,
        QKNorm,
        ScaleNorm,
    )
    from normlab.layers.weights import normalize_weights

__all__ = [
    "SPADE",
    "AdaIN",
    "AdaLN",
    "AdaLNZero",
    "AdaNorm",
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "ChannelNorm",
    "ConditionalBatchNorm",
    "ConvertReport",
    "Derf",
    "DivisiveNorm",
    "DyT",
    "ElementwiseLayerNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FiLM",
    "FilterResponseTLU",
    "FoldReport",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "GroupWeightNorm",
    "InstanceBatchNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerScale",
    "LocalResponseNorm",
    "Norm",
    "QKNorm",
    "RMSNorm",
    "RunningNorm",
    "ScaleNorm",
    "SwapReport",
    "SwitchableNorm",
    "constrain",
    "convert",
    "convert_report",
    "fold",
    "fold_report",
    "freeze",
    "from_flax",
    "from_keras",
    "from_onnx",
    "fuse_norms",
    "make_norm",
    "modulate",
    "normalize_weights",
    "parameter_groups",
    "recalibrate",
    "recomputed_outputs",
    "register_adapter",
    "restore_norms",
    "revert",
    "swap_norms",
    "swap_report",
    "takes_act",
    "to_flax",
    "to_keras",
    "to_onnx",
    "unfreeze",
]

_RARE = (
    "batches",
    "conditional",
    "dialects",
    "elementwise",
    "weights",
)  # files that load when one of their names is first used


def __getattr__(name: str) -> Any:
    if name in _RARE:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        for home in (import_module(f"{__name__}.{file}") for file in _RARE):
            if name in home.__all__:
                globals()[name] = getattr(home, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
