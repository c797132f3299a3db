"""Checkpoints of other implementations, in our layers' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

_SAME: Mapping[str, str] = MappingProxyType({})


def flatten(module: nn.Module, state_dict: dict[str, Any], prefix: str, names: Mapping[str, str] = _SAME) -> None:
    """Give a checkpoint's tensors our names and shapes: others keep numbers per channel as (1, C, 1, 1)."""
    for theirs, ours in names.items():
        if prefix + theirs in state_dict:
            state_dict[prefix + ours] = state_dict.pop(prefix + theirs)
    for name, held in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        found = state_dict.get(prefix + name)
        if found is not None and held.dim() == 1 and found.numel() == held.numel():
            state_dict[prefix + name] = found.reshape(held.shape)
