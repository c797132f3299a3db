"""`python -m benchmarks.calls`: what a call of a layer costs: from Python, through C++ (`normlab build`), torch's.

On tensors so small that a call is all there is: batch norm forward and backward, and a training step of ResNet-14 on
32 images of 8x8 pixels. One thread; the sides take turns of some hundredths of a second in one process, and what is
counted is the processor's time, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.bench.machine import describe, line
from normlab.bench.timing import keep_memory
from normlab.kernels import backend_for, use_backend
from normlab.layers.norms import make_norm
from normlab.models.residual import ResNet

TURN = 0.05  # seconds
SIDES = ("numba_cpu", "native_cpu", "torch")
SHAPES = ((2, 64, 2, 2), (32, 16, 8, 8), (32, 64, 2, 2))
BATCH = 32
Step = Callable[[], object]


def call_sides(shape: tuple[int, ...], act: str | None, adds: bool) -> list[Step]:
    """A forward and backward pass of a batch norm by each side, on the same tensors."""
    x, residual, dy = torch.randn(3, *shape)
    inputs = [v.requires_grad_() for v in ((x, residual) if adds else (x,))]
    ours, stock = make_norm("bn", shape[1], act=act), nn.BatchNorm2d(shape[1])

    def by_torch() -> Tensor:
        y = stock(x) + residual if adds else stock(x)
        return y if act is None else functional.relu(y)

    def both(forward: Callable[[], Tensor], learned: Iterable[Tensor]) -> Step:
        wanted = [*inputs, *learned]
        return lambda: torch.autograd.grad(forward(), wanted, dy)

    return [
        *(_on(name, both(lambda: ours(*inputs), ours.parameters())) for name in SIDES[:2]),
        both(by_torch, stock.parameters()),
    ]


def step_sides(channels_last: bool) -> list[Step]:
    """A training step of the same network by each side."""
    images, labels = torch.randn(BATCH, 1, 8, 8), torch.randint(0, 10, (BATCH,))
    form = torch.channels_last if channels_last else torch.contiguous_format

    def training(norm: str) -> Step:
        torch.manual_seed(0)
        model: Any = ResNet(14, lambda channels: make_norm(norm, channels), 10, 1, image_size=(8, 8))
        model = model.to(memory_format=form)
        x = images.to(memory_format=form)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            loss = functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    return [*(_on(name, training("bn")) for name in SIDES[:2]), training("torch-bn")]


def measure(sides: Sequence[Step], rounds: int, turns: int = 3) -> list[list[float]]:
    """Milliseconds of the processor by side and round: the best of a round's turns."""
    calls = [max(1, round(TURN / _seconds(side, 5))) for side in sides]
    found: list[list[float]] = [[] for _ in sides]
    for round_ in range(rounds):
        order = range(len(sides)) if round_ % 2 else reversed(range(len(sides)))
        for i in order:
            found[i].append(1e3 * min(_seconds(sides[i], calls[i]) for _ in range(turns)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each case: milliseconds by side, and the medians of the rounds' ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    if backend_for(torch.zeros(1)) != "native_cpu":
        raise SystemExit("the C++ part is not there: run `normlab build` first")
    print(line({**describe("cpu"), "threads": 1}) + f"; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"milliseconds of the processor, medians of n = {given.rounds} rounds; ratios: medians of the rounds'")
    print(f"{'':<46}{'Python':>9}{'C++':>9}{'torch':>9}{'C++/Python':>12}{'C++/torch':>11}")
    for shape in SHAPES:
        for act, adds in ((None, False), ("relu", True)):
            form = "norm + res + relu" if adds else "norm"
            _print_row(f"bn, {form}, {'x'.join(map(str, shape))}", call_sides(shape, act, adds), given.rounds)
    for last in (False, True):
        title = f"step of ResNet-14, {BATCH}x1x8x8, {'channels_last' if last else 'channels_first'}"
        _print_row(title, step_sides(last), given.rounds)
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    return 0


def _print_row(title: str, sides: Sequence[Step], rounds: int) -> None:
    python, native, stock = measure(sides, rounds)
    times = [statistics.median(v) for v in (python, native, stock)]
    ratios = [statistics.median(a / b for a, b in zip(native, v, strict=True)) for v in (python, stock)]
    print(f"{title:<46}" + "".join(f"{v:>9.3f}" for v in times) + f"{ratios[0]:>12.3f}{ratios[1]:>11.3f}", flush=True)


def _on(backend: str, step: Step) -> Step:
    def chosen() -> None:
        with use_backend(backend):
            step()

    return chosen


def _seconds(side: Step, calls: int) -> float:
    side()
    began = time.process_time()
    for _ in range(calls):
        side()
    return (time.process_time() - began) / calls


if __name__ == "__main__":
    raise SystemExit(main())
