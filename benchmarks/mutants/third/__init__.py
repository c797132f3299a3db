"""The third set: layers, right and wrong, in the styles that people write, apart from the library of slips."""

from benchmarks.mutants.third.right_layers import RIGHT
from benchmarks.mutants.third.wrong_layers import WRONG

__all__ = ["RIGHT", "WRONG"]
