"""Functions of torch that read a batch norm's numbers and write them into another layer, refused where that is wrong.

`torch.nn.SyncBatchNorm.convert_sync_batchnorm` and the folding of a batch norm into the layer before it take whatever
is an instance of torch's class. From one of our layers that applies an activation, or that is another norm with running
statistics, they would silently make a layer that computes something else. The guard sits in those functions: a layer's
attributes read like any attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn
from torch.nn.utils import fusion

_FOLDS = ("fuse_conv_bn_weights", "fuse_linear_bn_weights")
_CONVERT = "convert_sync_batchnorm"


def install(says_no: Callable[[Any], str | None]) -> None:
    """Guard torch's functions; `says_no(layer)` returns why a layer must not be read so, or None."""
    for name in _FOLDS:
        if hasattr(fusion, name):
            setattr(fusion, name, _fold(getattr(fusion, name), says_no))
    setattr(nn.SyncBatchNorm, _CONVERT, classmethod(_convert(getattr(nn.SyncBatchNorm, _CONVERT).__func__, says_no)))


def _fold(function: Any, says_no: Callable[[Any], str | None]) -> Any:
    """The function that computes folded weights. It is given tensors; its caller has the layer as `bn`."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        reason = says_no(sys._getframe(1).f_locals.get("bn"))
        if reason is not None:
            raise RuntimeError(
                f"{reason}; normlab.restore_norms(model) puts torch's own layers back, one for each step"
            )
        return function(*args, **kwargs)

    return guarded


def _convert(function: Any, says_no: Callable[[Any], str | None]) -> Any:
    @wraps(function)
    def guarded(cls: Any, module: nn.Module, process_group: Any = None) -> Any:
        for layer in module.modules():
            reason = says_no(layer)
            if reason is not None:
                raise RuntimeError(f"{reason}; normlab.distributed.synchronize(model) pools statistics over processes")
        return function(cls, module, process_group)

    return guarded
