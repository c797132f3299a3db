"""Networks with a pluggable norm, and their names. Reading a name (`normlab.models.names`) imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.models.residual import Block, NormConstructor, ResNet, Stem, build_model

__all__ = ["Block", "NormConstructor", "ResNet", "Stem", "build_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'normlab.models' has no attribute {name!r}")
    from normlab.models import residual

    return getattr(residual, name)
