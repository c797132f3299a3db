"""A mutant: a small realistic bug, written as a patch to a correct layer (originals/)."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from normlab.check.subjects import Subject, subject_of

ASPECTS = ("forward", "backward", "state", "numerics", "layout")
# original -> (what is checked, its backward partner, the kind that a user would name with --as)
ORIGINALS = {
    "batch_numpy": ("batchnorm_forward", "batchnorm_backward", "batch"),
    "layer_numpy": ("layernorm_forward", "layernorm_backward", "layer"),
    "group_numpy": ("spatial_groupnorm_forward", "spatial_groupnorm_backward", "group"),
    "batch_torch": ("BatchNorm", None, "batch"),
    "instance_torch": ("InstanceNorm", None, "instance"),
    "group_torch": ("GroupNorm", None, "group"),
    "layer_torch": ("LayerNorm", None, "layer"),
    "rms_torch": ("RMSNorm", None, "rms"),
    "batch_instance_torch": ("BatchInstanceNorm", None, "batch-instance"),
}


@dataclass(frozen=True)
class Mutant:
    """One bug: `edits` are (old, new) texts, each old one occurring exactly once in the original.

    `cause` is the diagnosis that a knowing reader would make; nothing but the scoring reads it.
    """

    name: str
    original: str
    aspect: str
    cause: str
    edits: tuple[tuple[str, str], ...]

    def source(self) -> str:
        """The patched source code."""
        text = original_source(self.original)
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"mutant {self.name}: {old!r} occurs {text.count(old)} times in {self.original}")
            text = text.replace(old, new)
        return text

    def subject(self) -> Subject:
        """The broken layer, named as its original is: nothing tells the kit which bug it has."""
        return subject_from_source(self.original, self.source(), f"_mutant_{self.name.replace('-', '_')}")


@cache
def original_source(original: str) -> str:
    return (Path(__file__).parent / "originals" / f"{original}.py").read_text()


def module_from_source(source: str, name: str) -> Any:
    """A module executed from source, importable by its name so that its classes pickle."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def subject_from_source(original: str, source: str, module_name: str) -> Subject:
    target, partner, kind = ORIGINALS[original]
    module = module_from_source(source, module_name)
    backward = getattr(module, partner) if partner else None
    return subject_of(getattr(module, target), target, backward, kind)


def correct(original: str) -> Subject:
    """The original itself."""
    return subject_from_source(original, original_source(original), f"_original_{original}")


def mutant(name: str, original: str, aspect: str, cause: str, *edits: str) -> Mutant:
    """Shorthand: edits as old, new, old, new, ..."""
    assert aspect in ASPECTS
    return Mutant(name, original, aspect, cause, tuple(zip(edits[::2], edits[1::2], strict=True)))
