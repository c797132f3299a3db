"""The training loop of `normlab.scratch.solver`, with the assignments' lines of print and order of random draws."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import solver

__all__ = ["Solver"]


class Solver(solver.Solver):
    """`normlab.scratch.solver.Solver`; the first accuracies are those after the first step, as in the assignments.

    Raises ValueError for an argument that there is not.
    """

    def __init__(self, model: Any, data: Mapping[str, np.ndarray], **kwargs: Any) -> None:
        known = inspect.signature(solver.Solver).parameters
        unknown = [f"{name!r}" for name in kwargs if name not in known]
        if unknown:
            expected = ", ".join(list(known)[2:])
            raise UsageError(f"Unrecognized arguments {', '.join(unknown)}; expected some of {expected}")
        super().__init__(model, data, **kwargs)

    def _begin(self) -> None:
        """Nothing is measured before the first step."""

    def _end_step(self) -> None:
        if not self.val_acc_history:
            self._measure()

    def _print_step(self, total: int) -> None:
        print(f"(Iteration {len(self.loss_history)} / {total}) loss: {self.loss_history[-1]:f}")

    def _print_epoch(self, train: float, val: float) -> None:
        print(f"(Epoch {self.epoch} / {self.num_epochs}) train acc: {train:f}; val_acc: {val:f}")
