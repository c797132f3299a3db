"""One application of a norm: what a layer passes on to the functions that compute it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from normlab.kernels.activations import Activation
from normlab.kernels.contract import Planes
from normlab.norms.application import Recipe


@dataclass(slots=True)
class Call:
    """The constants of one application.

    `running` stands in for the batch's statistics. `update` has the running mean and variance to be updated, the
    momentum, and how many batches there were, if they are counted; a momentum of None averages them all. `backend` is
    the one that serves the input, where it has been looked for.
    """

    recipe: Recipe
    params: dict[str, Tensor]
    running: tuple[Tensor, Tensor] | None
    eps: float
    act: Activation | None = None
    update: tuple[Tensor, Tensor, float | None, Tensor | None] | None = None
    backend: Planes | None = None
