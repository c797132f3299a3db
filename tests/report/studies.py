"""Made-up studies: realistic records by code, so that tests need no training."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

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
                "epochs": [_epoch(epoch, epochs, final, rng) | _inside(norm, epoch) for epoch in range(1, epochs + 1)],
                "test": {
                    "loss": 1.2 * (1 - final),
                    "accuracy": final,
                    "micro_f1": final,
                    "macro_f1": final - 0.001,
                    "confusion": _confusion(final, len(class_names), rng),
                },
                "parameters": 175_258,
                "peak_memory_bytes": int(8e8 + 1e7 * len(norm)),
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


def _inside(norm: str, epoch: int) -> dict[str, Any]:
    """Distributions that stay with a norm and drift without one, and gradient norms."""
    reach = 1 + 0.6 * epoch if norm == "none" else 2.2
    layers = {
        layer: {
            "percentiles": [round(reach * q * (1 + depth / 4), 4) for q in (-1.8, -0.6, 0.05, 0.7, 2.0)],
            "mean": 0.06 * reach,
            "std": 0.9 * reach,
            "dead": 0.0625 if norm == "none" else 0.0,
        }
        for depth, layer in enumerate(("stage 1", "stage 2", "stage 3", "features"))
    }
    names = ["stem.0", *[f"blocks.{b}.conv{c}" for b in range(3) for c in (1, 2)], "classifier"]
    gradients = {name: 0.3 * 0.8**place * (1 + len(norm) / 5) for place, name in enumerate(names)}
    return {"features": layers, "gradients": gradients}


def explained(
    norms: Sequence[str] = tuple(SKILL),
    class_names: Sequence[str] = ("airplane", "bird", "cat", "dog"),
    images: int = 3,
) -> dict[str, Any]:
    """What `normlab explain` writes, with random pictures."""
    rng = np.random.default_rng(3)

    def picture() -> str:
        tint = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(tint).resize((96, 96), Image.Resampling.BICUBIC).save(file, "WEBP", quality=70)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()

    def image(index: int, truth: str, right: bool) -> dict[str, Any]:
        says = truth if right else class_names[(list(class_names).index(truth) + 1) % len(class_names)]
        maps = [
            {"norm": norm, "predicted": says, "confidence": float(rng.uniform(0.4, 1)), "picture": picture()}
            for norm in norms
        ]
        return {"index": index, "truth": truth, "picture": picture(), "maps": maps}

    return {
        "classes": list(class_names),
        "galleries": [
            {"class": name, "kind": kind, "images": [image(17 * i, name, kind == "correct") for i in range(images)]}
            for name in class_names[-2:]
            for kind in ("correct", "incorrect")
        ],
        "agreement": [
            {"a": a, "b": b, "mean": float(0.7 if a == b else rng.uniform(0.2, 0.6)), "values": []}
            for i, a in enumerate(norms)
            for b in norms[i:]
        ],
        "deletion": [
            {
                "norm": norm,
                "seed": seed,
                "by_map": list(np.linspace(0.9, 0.1, 11) ** 1.5),
                "at_random": list(np.linspace(0.9, 0.1, 11)),
                "gain": 0.1,
            }
            for norm in norms
            for seed in range(2)
        ],
        "confusion": {norm: _confusion(0.85, len(class_names), rng) for norm in norms},
        "per_class_f1": {norm: [float(v) for v in rng.uniform(0.7, 0.95, len(class_names))] for norm in norms},
        "telling": [{"norm": norms[0], "other": norms[-1], "truth": 0, "called": 1, "rate": 0.12, "other_rate": 0.03}],
        "disagreed": [
            {
                "index": 5 * i,
                "truth": class_names[0],
                "picture": picture(),
                "votes": {class_names[0]: 4, class_names[1]: 3},
            }
            for i in range(6)
        ],
        "three_ways": [
            {
                "norm": "bn",
                "seed": seed,
                "batch_size": size,
                "loss": {"running": 0.52 + 0.4 / size, "recomputed": 0.5, "batch": 0.5 + 1.0 / size + 0.01 * seed},
                "accuracy": {"running": 0.84, "recomputed": 0.85, "batch": 0.8},
            }
            for size in (8, 128)
            for seed in range(3)
        ],
    }


def _confusion(accuracy: float, classes: int, rng: np.random.Generator) -> list[list[int]]:
    wrong = rng.multinomial(round(1000 * (1 - accuracy)), np.full(classes - 1, 1 / (classes - 1)), size=classes)
    matrix = np.zeros((classes, classes), dtype=int)
    for row in range(classes):
        matrix[row, np.arange(classes) != row] = wrong[row]
        matrix[row, row] = 1000 - wrong[row].sum()
    return matrix.tolist()
