"""Adapters: any target (torch Module, NumPy functions, Keras or Flax layer, ...) as one uniform `Subject`."""

from normlab.check.subjects.base import Options, Subject, TargetFailure, Unsupported
from normlab.check.subjects.resolve import load, subject_of

__all__ = ["Options", "Subject", "TargetFailure", "Unsupported", "load", "subject_of"]
