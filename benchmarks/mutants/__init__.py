"""Named bugs in normalization layers, each a small realistic slip: what the kit is scored by.

`python -m benchmarks.mutants` runs the kit and three other ways of testing on all of them and prints the table.
"""

from __future__ import annotations

from benchmarks.mutants.base import ASPECTS, ORIGINALS, Mutant, correct
from benchmarks.mutants.batch import NUMPY, TORCH
from benchmarks.mutants.batch_instance import BATCH_INSTANCE
from benchmarks.mutants.per_sample import GROUP, INSTANCE, LAYER, RMS

MUTANTS: tuple[Mutant, ...] = (*TORCH, *NUMPY, *LAYER, *RMS, *INSTANCE, *GROUP, *BATCH_INSTANCE)

__all__ = ["ASPECTS", "MUTANTS", "ORIGINALS", "Mutant", "correct"]
