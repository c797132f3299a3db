"""What comes out of a comparison: a trained network that predicts, and the one file that it fits into.

`Trained` has the weights and everything that a prediction needs besides; `load` reads one from a file without
executing anything; `trained_in` finds those of a study's directory.
"""

from __future__ import annotations

from normlab.study.trained.facts import Facts
from normlab.study.trained.network import Trained, load
from normlab.study.trained.predictor import Prediction, Predictor
from normlab.study.trained.stored import trained_in

__all__ = ["Facts", "Prediction", "Predictor", "Trained", "load", "trained_in"]
