"""Ten models before and after: a training step and an inference pass, losses included, on this machine's CPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

import normlab
from benchmarks.census.models import built, tensors
from normlab.bench.machine import describe, line

TEN = (
    "timm:resnet", "timm:convnext", "timm:mobilenetv3", "timm:efficientnet", "timm:densenet", "timm:regnet",
    "timm:vision_transformer", "timm:swin_transformer", "transformers:llama", "transformers:bert",
)  # fmt: skip
ROUNDS = 5


def print_speed(names: list[str]) -> None:
    """A line a model: milliseconds of a training step and of an inference pass, each the best of interleaved rounds."""
    warnings.simplefilter("ignore")
    print(line(describe("cpu")))
    print(f"milliseconds, the best of {ROUNDS} interleaved rounds; after: swapped (where='faster': layers left)\n")
    print("| model | step before | after | faster only | inference before | after | faster only | left |")
    print("|---" * 8 + "|")
    for name in names or TEN:
        print(_line(name), flush=True)


def _line(name: str) -> str:
    stock, inputs = built(name)
    cells, left = [], []
    for training, run in ((True, _step), (False, _infer)):
        given = stock.train(training)
        chosen = normlab.swap_norms(copy.deepcopy(given), where="faster", example=tuple(inputs.values()))
        models = (given, normlab.swap_norms(copy.deepcopy(given)), chosen)
        best = _best(models, inputs, run)
        cells += [f"{1e3 * seconds:.1f}" for seconds in best]
        left.append(str(len(normlab.swap_report(chosen).left)))
    return f"| {stock.architecture} | {' | '.join(cells)} | {', '.join(left)} |"


def _best(models: tuple[nn.Module, ...], inputs: dict[str, Any], run: Callable[..., None]) -> list[float]:
    best = [float("inf")] * len(models)
    for turn in range(1 + ROUNDS):  # the first is not counted
        for i, model in enumerate(models):
            began = perf_counter()
            run(model, inputs)
            best[i] = min(best[i], perf_counter() - began) if turn else best[i]
    return best


def _step(model: nn.Module, inputs: dict[str, Any]) -> None:
    outputs = tensors(model(**inputs))
    sum(v.square().mean() for v in outputs).backward()  # type: ignore[union-attr]
    model.zero_grad()


def _infer(model: nn.Module, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        model(**inputs)
