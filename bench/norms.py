"""Times the normalization layers, forward + backward, beside torch's and beside the fewest bytes they could move.

The smallest shape has next to no work in it: there stands what a call costs.

The floor is what reading x and writing y, then reading dy and x and writing dx, would take at the speed of a copy
measured in the same run: 2.5 copies. Torch has no batch-instance norm; beside ours stands the authors' composition of
a batch and an instance normalization.

python -m bench.norms [--json]
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench._timing import in_turns, keep_memory, machine
from normlab import make_norm
from normlab.norms import default_groups

SHAPES = ((2, 64, 2, 2), (128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (32, 64, 56, 56))
NORMS = ("bn", "in", "bin", "ln", "gn")
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


class _BatchInstance(nn.Module):
    """Batch-instance norm as its authors compose it from torch's functions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.gate = nn.Parameter(torch.ones(channels))
        self.running_mean, self.running_var = torch.zeros(channels), torch.ones(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = F.batch_norm(x, self.running_mean, self.running_var, self.weight * self.gate, self.bias, True)
        return batch + F.instance_norm(x, weight=self.weight * (1 - self.gate))


def stock(norm: str, channels: int) -> nn.Module:
    """Torch's layer of the same function."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "in": lambda: nn.InstanceNorm2d(channels, affine=True),
        "bin": lambda: _BatchInstance(channels),
        "ln": lambda: nn.GroupNorm(1, channels),
        "gn": lambda: nn.GroupNorm(default_groups(channels), channels),
    }
    return makers[norm]()


def measure(norm: str, shape: tuple[int, ...], layout: str, rounds: int) -> dict[str, Any]:
    """One row: medians over the rounds, the ratio being the median of each round's."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2))
    x.requires_grad_()
    target = torch.empty_like(x)

    def step(layer: nn.Module) -> Callable[[], None]:
        wanted = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), wanted, dy) and None

    sides = [step(make_norm(norm, shape[1])), step(stock(norm, shape[1])), lambda: target.copy_(x.detach())]
    ours, torchs, copies = in_turns(sides, rounds)
    return {
        "norm": norm,
        "shape": list(shape),
        "layout": f"channels_{layout}",
        "ours_ms": statistics.median(ours),
        "torch_ms": statistics.median(torchs),
        "floor_ms": 2.5 * statistics.median(copies),
        "ratio": statistics.median(b / a for a, b in zip(ours, torchs, strict=True)),
        "rounds": rounds,
    }


def main(rounds: int = 7, as_json: bool = False) -> list[dict[str, Any]]:
    """Measures and prints every row, and how many are lost."""
    kept = keep_memory()
    if not as_json:
        print("freed memory is kept (both sides)" if kept else "freed memory is handed back, which both sides may pay")
        print(f"normalization layers, forward + backward, float32; {machine()}; n = {rounds} rounds")
        print(f"{'norm':5}{'shape':>18}{'layout':>16}{'ours ms':>10}{'torch ms':>10}{'floor ms':>10}{'torch/ours':>12}")
    rows = []
    for norm in NORMS:
        for shape in SHAPES:
            for layout in LAYOUTS:
                r = measure(norm, shape, layout, rounds)
                rows.append(r)
                if not as_json:
                    size = "x".join(map(str, shape))
                    figures = f"{r['ours_ms']:10.2f}{r['torch_ms']:10.2f}{r['floor_ms']:10.2f}{r['ratio']:11.2f}x"
                    print(f"{norm:5}{size:>18}{r['layout']:>16}{figures}", flush=True)
    if as_json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    else:
        lost = [r for r in rows if r["ratio"] < 1]
        mean = math.exp(statistics.fmean(math.log(r["ratio"]) for r in rows))
        print(f"geometric mean {mean:.2f}x over {len(rows)} rows; slower than torch at {len(lost)} of them")
    return rows


if __name__ == "__main__":
    main(as_json="--json" in sys.argv[1:])
