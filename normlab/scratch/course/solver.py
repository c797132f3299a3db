"""The training loop of `normlab.scratch.solver`."""

from normlab.scratch.solver import Solver

__all__ = ["Solver"]
