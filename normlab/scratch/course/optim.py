"""The update rules of `normlab.scratch.optim`."""

from normlab.scratch.optim import adam, rmsprop, sgd, sgd_momentum

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]
