"""Times the NumPy engine against nested loops and torch, in one run, and says which ratios are asked for.

python -m benchmarks.scratch
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from normlab.bench.machine import describe, line
from normlab.bench.timing import in_turns, keep_memory
from normlab.scratch import fast_layers, layers, optim
from normlab.scratch.nets import ConvNet, FullyConnectedNet

# x, w, stride, pad
CONVOLUTIONS = [((100, 3, 31, 31), (25, 3, 3, 3), 2, 1), ((128, 16, 32, 32), (16, 16, 3, 3), 1, 1)]
TURN = 0.15  # seconds: several calls, since the threads of NumPy's BLAS and torch's wait awake for a while after theirs
WANTED_LOOPS, WANTED_TORCH, WANTED_STEP = 2000.0, 0.5, 0.7


def main(args: list[str] | None = None) -> None:
    """Runs all benchmarks and prints a line, or with --json a record, for each."""
    kept = keep_memory()
    records = [*convolutions(), *training_steps()]
    if "--json" in (sys.argv[1:] if args is None else args):
        print(json.dumps({"machine": describe("cpu"), "records": records}, indent=1))
        return
    print(line(describe("cpu")))
    print("freed memory is kept (both sides)" if kept else "freed memory is handed back, which both sides may pay")
    print(f"{'what':64}{'ours':>10}{'other':>12}{'ratio':>9}{'wanted':>9}")
    for r in records:
        print(f"{r['what']:64}{r['ours_ms']:8.3f}ms{r['other_ms']:10.2f}ms{r['ratio']:9.3g}{r['wanted']:9g}")


def convolutions() -> list[dict[str, Any]]:
    """Forward and backward passes against the nested loops and torch's convolution."""
    records = []
    for dtype in (np.float32, np.float64):
        for x_shape, w_shape, stride, pad in CONVOLUTIONS:
            rng = np.random.default_rng(0)
            x, w, b = (rng.normal(size=s).astype(dtype) for s in (x_shape, w_shape, w_shape[:1]))
            param = {"stride": stride, "pad": pad}
            out, cache = fast_layers.conv_forward_fast(x, w, b, param)
            dout = rng.normal(size=out.shape).astype(dtype)
            # a tenth of the samples, times ten: the loops take the same time for each
            tenth = max(1, len(x) // 10)
            start = time.perf_counter()
            _, slow_cache = layers.conv_forward_naive(x[:tenth], w, b, param)
            middle = time.perf_counter()
            layers.conv_backward_naive(dout[:tenth], slow_cache)
            loops = [1e3 * t * len(x) / tenth for t in (middle - start, time.perf_counter() - middle)]
            tx, tw, tb, tdout = (torch.from_numpy(a) for a in (x, w, b, dout))
            geometry = ([stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1)
            passes: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
                (
                    "forward",
                    partial(fast_layers.conv_forward_fast, x, w, b, param),
                    partial(torch.conv2d, tx, tw, tb, stride, pad),
                ),
                (
                    "backward",
                    partial(fast_layers.conv_backward_fast, dout, cache),
                    partial(torch.ops.aten.convolution_backward, tdout, tx, tw, [len(w)], *geometry, [True] * 3),
                ),
            ]
            for (name, ours, stock), slow in zip(passes, loops, strict=True):
                what = f"conv {name} {x_shape} by {w_shape[0]}, {np.dtype(dtype)}"
                fast, theirs = map(statistics.median, in_turns([ours, stock], budget=TURN))
                records.append(_record(f"{what} / loops", fast, slow, WANTED_LOOPS))
                records.append(_record(f"{what} / torch", fast, theirs, WANTED_TORCH))
    return records


def training_steps() -> list[dict[str, Any]]:
    """One step of SGD and of Adam on a batch of 100, against the same network in torch."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100, 3, 32, 32)).astype(np.float32), rng.integers(10, size=100)
    records = []
    for kind, norms in (
        ("fully connected", (None, "batchnorm", "layernorm")),
        ("conv", (None, "batchnorm", "groupnorm")),
    ):
        for norm in norms:
            for rule in ("sgd", "adam"):
                if kind == "conv":
                    net: Any = ConvNet((3, 32, 32), [16, 32], 3, 100, normalization=norm)
                else:
                    net = FullyConnectedNet([100] * 5, normalization=norm)
                stock = torch_net(kind, norm)
                lr = 1e-3
                optimizer: Any = (
                    torch.optim.Adam(stock.parameters(), lr)
                    if rule == "adam"
                    else torch.optim.SGD(stock.parameters(), lr)
                )
                sides = [
                    partial(_our_step, net, {name: {"learning_rate": lr} for name in net.params}, rule, X, y),
                    partial(_torch_step, stock, optimizer, torch.from_numpy(X), torch.from_numpy(y)),
                ]
                ours, theirs = map(statistics.median, in_turns(sides, budget=TURN))
                what = f"step of the {kind} net, {norm or 'no norm'}, {rule} / torch"
                records.append(_record(what, ours, theirs, WANTED_STEP))
    return records


def torch_net(kind: str, norm: str | None) -> nn.Sequential:
    """The torch counterpart of the engine's networks."""
    modules: list[nn.Module] = []
    width = 3
    for wanted in (16, 32) if kind == "conv" else ():
        modules.append(nn.Conv2d(width, wanted, 3, padding=1))
        if norm:
            modules.append(nn.BatchNorm2d(wanted) if norm == "batchnorm" else nn.GroupNorm(4, wanted))
        modules += [nn.ReLU(), nn.MaxPool2d(2)]
        width = wanted
    modules.append(nn.Flatten())
    width = 32 * 8 * 8 if kind == "conv" else 3 * 32 * 32
    for _ in range(1 if kind == "conv" else 5):
        modules.append(nn.Linear(width, 100))
        if norm and kind != "conv":
            modules.append(nn.BatchNorm1d(100) if norm == "batchnorm" else nn.LayerNorm(100))
        modules.append(nn.ReLU())
        width = 100
    return nn.Sequential(*modules, nn.Linear(width, 10))


def _our_step(net: Any, configs: dict[str, Any], rule: str, X: np.ndarray, y: np.ndarray) -> None:
    _, grads = net.loss(X, y)
    for name, w in net.params.items():
        net.params[name], configs[name] = optim.rule(rule)(w, grads[name], configs[name])


def _torch_step(net: nn.Module, optimizer: Any, X: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), y).backward()
    optimizer.step()


def _record(what: str, ours: float, other: float, wanted: float) -> dict[str, Any]:
    return {"what": what, "ours_ms": ours, "other_ms": other, "ratio": other / ours, "wanted": wanted}


if __name__ == "__main__":
    main()
