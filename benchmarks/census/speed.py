"""Ten models before and after: a training step and an inference pass, losses included, on this machine's CPU.

Each round runs every side once, in an order that changes, and counts the seconds of the processor: other programs take
none of those. What is printed of a side is the median over the rounds of (before / side).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from statistics import geometric_mean, median
from time import process_time
from typing import Any

import torch
from torch import nn

import normlab
from benchmarks.census.models import built, tensors
from normlab.bench.machine import describe, line

TEN = (
    "timm:resnet18", "timm:convnext_atto", "timm:mobilenetv3_small_100", "timm:efficientnet_b0", "timm:densenet121",
    "timm:regnetx_004", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224", "transformers:llama",
    "transformers:bert",
)  # fmt: skip
ROUNDS = 7
SIDES = ("swapped", "fused", "faster only")


def print_speed(names: list[str]) -> None:
    """A line a model, and the geometric means."""
    warnings.simplefilter("ignore")
    print(f"{line(describe('cpu'))}; {ROUNDS} interleaved rounds, load {os.getloadavg()[0]:.1f} of {os.cpu_count()}")
    print(f"layers of ours by {normlab.backend_for(torch.empty(1, 1))}\n")
    head = ["model", "norms", "loss before", "swapped", "fused"]
    for what in ("step", "inference"):
        head += [f"{what}, ms before", *SIDES, "left"]
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|", flush=True)
    found: dict[tuple[str, str], list[float]] = {}
    for name in names or TEN:
        print(_line(name, found), flush=True)
    said = (f"{what}, {side} {geometric_mean(gains):.2f}" for (what, side), gains in found.items())
    print(f"\ngeometric mean of before / after: {'; '.join(said)}; load {os.getloadavg()[0]:.1f} at the end")


def _line(name: str, found: dict[tuple[str, str], list[float]]) -> str:
    """One model's row; its gains are added to `found`."""
    stock, inputs = built(name)
    norms = len(normlab.swap_report(normlab.swap_norms(copy.deepcopy(stock))).taken)
    cells = [stock.architecture, norms]
    for what, training, run in (("step", True, _step), ("inference", False, _infer)):
        models = _sides(stock.train(training), inputs)
        losses = [run(copy.deepcopy(model), inputs) for model in models]
        if training:
            cells += [f"{loss:.6g}" for loss in losses[:3]]
        before, gains = _measure(models, inputs, run)
        cells += [f"{1e3 * before:.1f}", *(f"{gain:.2f}" for gain in gains)]
        cells.append(len(normlab.swap_report(models[3]).left))
        for side, gain in zip(SIDES, gains, strict=True):
            found.setdefault((what, side), []).append(gain)
    return f"| {' | '.join(map(str, cells))} |"


def _sides(model: nn.Module, inputs: dict[str, Any]) -> list[nn.Module]:
    """The model as it is, swapped, fused, and with those layers of ours that were measured to be faster."""
    given = tuple(inputs.values())
    fused = normlab.fuse_norms(copy.deepcopy(model), *given)
    swapped, faster = normlab.swap_norms(copy.deepcopy(model)), copy.deepcopy(model)
    return [model, swapped, fused, normlab.swap_norms(faster, where="faster", example=given)]


def _measure(models: list[nn.Module], inputs: dict[str, Any], run: Callable[..., float]) -> tuple[float, list[float]]:
    """The processor's seconds of the first model, the median of the rounds, and before / after of the others."""
    rounds: list[list[float]] = []
    for turn in range(1 + ROUNDS):  # the first is not counted
        took = [0.0] * len(models)
        for k in range(len(models)):
            i = (k + turn) % len(models)
            began = process_time()
            run(models[i], inputs)
            took[i] = process_time() - began
        rounds += [took] if turn else []
    gains = [median(took[0] / took[i] for took in rounds) for i in range(1, len(models))]
    return median(took[0] for took in rounds), gains


def _step(model: nn.Module, inputs: dict[str, Any]) -> float:
    """A forward and a backward pass; returns the loss."""
    loss: Any = sum(v.square().mean() for v in tensors(model(**inputs)))
    loss.backward()
    model.zero_grad()
    return float(loss)


def _infer(model: nn.Module, inputs: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(tensors(model(**inputs))[0].square().mean())
