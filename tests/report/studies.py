"""Made-up studies: realistic records by code, so that tests need no training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

SKILL = {"bn": 0.878, "torch-bn": 0.879, "bin": 0.881, "gn": 0.858, "in": 0.847, "ln": 0.849, "none": 0.845}
HOSTILE = "</script><script>alert(1)</script>"


def results(
    norms: Sequence[str] = tuple(SKILL),
    seeds: int = 3,
    epochs: int = 12,
    batch_sizes: Sequence[int] = (128,),
    lrs: Sequence[float] = (0.1,),
    noise: float = 0.003,
    class_names: Sequence[str] = ("airplane", "bird", "cat", "dog"),
) -> dict[str, Any]:
    """A results.json document in which `norms` differ as published, with seed noise."""
    rng = np.random.default_rng(7)
    cells = []
    for norm, batch_size, lr, seed in itertools.product(norms, batch_sizes, lrs, range(seeds)):
        final = SKILL.get(norm, 0.8) + rng.normal(0, noise) - 0.05 * abs(np.log10(lr / 0.1))
        if norm in ("bn", "torch-bn") and batch_size < 16:
            final -= 0.04
        cells.append(
            {
                "norm": norm,
                "seed": seed,
                "batch_size": batch_size,
                "optimizer": "sgd",
                "lr": lr,
                "status": "done",
                "epochs": [_epoch(epoch, epochs, final, rng) for epoch in range(1, epochs + 1)],
                "test": {
                    "loss": 1.2 * (1 - final),
                    "accuracy": final,
                    "micro_f1": final,
                    "macro_f1": final - 0.001,
                    "confusion": _confusion(final, len(class_names), rng),
                },
                "parameters": 175_258,
                "peak_memory": int(8e8 + 1e7 * len(norm)),
            }
        )
    environment = {
        "command": "normlab compare cifar10 --seeds 3",
        "data": "cifar10",
        "data_hash": "9f2c" * 8,
        "class_names": list(class_names),
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "cpu": "a processor",
        "threads": 2,
    }
    return {"cells": cells, "environment": environment}


def _epoch(epoch: int, epochs: int, final: float, rng: np.random.Generator) -> dict[str, Any]:
    progress = 1 - np.exp(-4 * epoch / epochs)
    validation = 0.1 + (final - 0.1) * progress + rng.normal(0, 0.006)
    training = 0.1 + (final + 0.06 - 0.1) * progress + rng.normal(0, 0.002)
    return {
        "epoch": epoch,
        "train_loss": 2.3 * (1 - progress) + 0.9 - final,
        "train_accuracy": training,
        "val_loss": 2.3 * (1 - progress) + 1.3 - final + rng.normal(0, 0.02),
        "val_accuracy": validation,
        "val_micro_f1": validation,
        "val_macro_f1": validation - 0.001,
        "seconds": 12.0 + rng.normal(0, 0.3),
        "images_per_second": 3300 + rng.normal(0, 60),
    }


def _confusion(accuracy: float, classes: int, rng: np.random.Generator) -> list[list[int]]:
    wrong = rng.multinomial(round(1000 * (1 - accuracy)), np.full(classes - 1, 1 / (classes - 1)), size=classes)
    matrix = np.zeros((classes, classes), dtype=int)
    for row in range(classes):
        matrix[row, np.arange(classes) != row] = wrong[row]
        matrix[row, row] = 1000 - wrong[row].sum()
    return matrix.tolist()
