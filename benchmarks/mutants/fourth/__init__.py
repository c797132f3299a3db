"""The fourth set: written without a look at the library of slips, after the third had been used to extend it."""

from benchmarks.mutants.fourth.right_layers import RIGHT
from benchmarks.mutants.fourth.wrong_layers import WRONG

__all__ = ["RIGHT", "WRONG"]
