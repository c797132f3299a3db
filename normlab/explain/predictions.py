"""What trained networks predict for images: logits, the confusions of one norm and not another, disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from normlab.data import standardize
from normlab.study.training.features import evaluating


def predict(
    model: nn.Module, images: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32], batch: int = 250
) -> NDArray[np.float32]:
    """Logits (N, K) in evaluation mode for uint8 images (N, C, H, W), standardized by mean and std (C,)."""
    offset, scale = torch.as_tensor(mean), torch.as_tensor(std)
    with evaluating(model):
        parts = [
            model(standardize(torch.from_numpy(np.array(images[start : start + batch])), offset, scale))
            for start in range(0, len(images), batch)
        ]
    return torch.cat(parts).float().cpu().numpy()


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Confusion:
    """`norm` takes class `truth` for `called` more often than `other` does; rates are shares of the true class."""

    norm: str
    other: str
    truth: int
    called: int
    rate: float
    other_rate: float


def telling_confusions(matrices: Mapping[str, NDArray[np.int64]], most: int = 10) -> list[Confusion]:
    """The confusions that differ most between two norms, largest difference first.

    `matrices` holds each norm's (K, K) counts, summed over its seeds. Only off-diagonal entries count, each
    (truth, called) pair once, between the norm that makes it most and the one that makes it least.
    """
    names = list(matrices)
    if len(names) < 2:
        return []
    rates = np.stack([m / np.maximum(m.sum(axis=1, keepdims=True), 1) for m in matrices.values()])
    spread = rates.max(axis=0) - rates.min(axis=0)
    np.fill_diagonal(spread, 0)
    found = []
    for place in np.argsort(-spread, axis=None, kind="stable")[:most]:
        truth, called = (int(i) for i in np.unravel_index(place, spread.shape))
        if spread[truth, called] <= 0:
            break
        high, low = int(rates[:, truth, called].argmax()), int(rates[:, truth, called].argmin())
        pair = float(rates[high, truth, called]), float(rates[low, truth, called])
        found.append(Confusion(names[high], names[low], truth, called, *pair))
    return found


def disagreement(predictions: Sequence[NDArray[np.int64]], num_classes: int) -> NDArray[np.float64]:
    """How much networks disagree on each image: the entropy of their votes in bits, (N,).

    `predictions` has one array of N class numbers per network; 0 means that all say the same.
    """
    votes = np.stack(predictions)
    shares = np.stack([(votes == k).mean(axis=0) for k in range(num_classes)])
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    # 0 - ..., so that unanimity is 0 and not -0
    return 0 - (shares * logs).sum(axis=0)
