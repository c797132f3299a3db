"""The bytes that the backward pass moves in a second, beside the forward pass: `python -m benchmarks.directions`.

What a pass goes over is counted by the tensors that it reads and writes: x, g, y and dx; what is read once for the sums
and once for the result counts twice where a norm pools over the batch. With an activation a residual is read again, and
its gradient written. One thread; sides take turns.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch

from normlab.bench.machine import describe, line
from normlab.bench.sides import arrange, our_layer, random_tensor
from normlab.bench.timing import in_turns, keep_memory
from normlab.bench.work import FORMS, LAYOUTS, NORMS, SHAPES, Work, grid
from normlab.norms.family import parse

WANTED = 0.8  # of the forward pass's bytes in a second
LEAST = 1 << 20  # bytes of x from which on a row counts


def main(args: list[str] | None = None) -> None:
    """Print a row for each norm, form, shape and layout, and the summary; with --quick for two shapes."""
    args = sys.argv[1:] if args is None else args
    shapes = SHAPES[:1] + SHAPES[2:3] if "--quick" in args else SHAPES
    torch.set_num_threads(1)
    keep_memory()
    print(line(describe("cpu")))
    print(f"{'':60s} forward                 backward                backward / forward (wanted: {WANTED})")
    rows = []
    for work in grid(NORMS, FORMS, shapes, LAYOUTS):
        if work.tensor_bytes >= LEAST:
            rows.append(measure(work))
            print(_line(rows[-1]), flush=True)
    for what in ("norm", "layout", "form"):
        found = {row[what]: [r["ratio"] for r in rows if r[what] == row[what]] for row in rows}
        print(f"median by {what}: " + ", ".join(f"{name} {statistics.median(v):.2f}" for name, v in found.items()))
    ratios = [row["ratio"] for row in rows]
    reached = sum(ratio >= WANTED for ratio in ratios)
    print(
        f"median {statistics.median(ratios):.2f}, least {min(ratios):.2f}; {reached} of {len(rows)} rows reach {WANTED}"
    )


def measure(work: Work, rounds: int = 3) -> dict[str, Any]:
    """Milliseconds and GB/s of both directions of a row, and their ratio."""
    layer = our_layer(work)
    layer.train()
    x, other, g = (arrange(random_tensor(work, seed, "cpu"), work.layout) for seed in range(3))
    x.requires_grad_()
    residual = [other.requires_grad_()] if work.residual else []
    wanted = [x, *residual, *layer.parameters()]
    y = layer(x, *residual)
    forward, backward = in_turns(
        [lambda: layer(x, *residual), lambda: torch.autograd.grad(y, wanted, g, retain_graph=True)], rounds
    )
    tensors = tensors_moved(work)
    speeds = [
        count * work.tensor_bytes / statistics.median(times) / 1e6
        for count, times in zip(tensors, (forward, backward), strict=True)
    ]
    return {
        **work.to_dict(),
        "name": work.name,
        "ms": [statistics.median(forward), statistics.median(backward)],
        "gb_per_s": speeds,
        "ratio": speeds[1] / speeds[0],
    }


def tensors_moved(work: Work) -> tuple[int, int]:
    """How many tensors of x's size the forward pass goes over, and how many the backward pass."""
    forward, backward = (3, 5) if parse(work.norm)[0].batchwise else (2, 3)
    if work.residual:
        forward += 1
        backward += 2 if work.act else 0
    return forward, backward


def _line(row: dict[str, Any]) -> str:
    (first, second), (fast, slow) = row["ms"], row["gb_per_s"]
    missed = "" if row["ratio"] >= WANTED else "<"
    return (
        f"{row['name']:60s} {first:8.3f} ms {fast:6.1f} GB/s  "
        f"{second:8.3f} ms {slow:6.1f} GB/s  {row['ratio']:.2f}{missed}"
    )


if __name__ == "__main__":
    main()
