"""Norms watched while somebody else's loop trains them: by hand, in Lightning, and in the trainer of transformers."""

from normlab.explain.watching.lightning import lightning_callback
from normlab.explain.watching.norms import NormWatch
from normlab.explain.watching.trainer import trainer_callback

__all__ = ["NormWatch", "lightning_callback", "trainer_callback"]
