"""Times layers, forward and backward, beside torch's and beside the fewest bytes that they could move.

The floor of a row is what its bytes (`Work.bytes_moved`) take at the speed of a copy of a tensor of its own size,
measured in the same rounds. Where everything fits in a cache, it is the cache's speed.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from normlab.bench.sides import compiled, make_step, our_layer, random_tensor, stock_layer
from normlab.bench.timing import in_turns
from normlab.bench.work import Work
from normlab.errors import DataError, UsageError
from normlab.study.training.compiling import forget_compiled

_TOO_LARGE = ("memory", "Storage size calculation overflowed")  # of torch's messages


def measure(work: Work, rounds: int, device: str = "cpu", with_compiled: bool = False) -> dict[str, Any]:
    """One row: milliseconds (medians over the rounds), and ratios (medians of the rounds' own ratios).

    `eager_ratio` and `compiled_ratio` are torch's time over ours; `floor_share` is the floor over ours. Raises
    UsageError where the norm does not take the shape, and DataError where the memory does not take it.
    """
    try:
        return _measure(work, rounds, device, with_compiled)
    except ValueError as error:
        raise UsageError(f"{work.name}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TOO_LARGE):
            raise
        raise DataError(f"{work.name}: there is not enough memory; choose a smaller shape") from error


def _measure(work: Work, rounds: int, device: str, with_compiled: bool) -> dict[str, Any]:
    dtype = getattr(torch, work.dtype)

    def place(layer: nn.Module) -> nn.Module:
        return layer.to(device, dtype)

    layers = {"eager": place(stock_layer(work)), "ours": place(our_layer(work))}
    if with_compiled:
        forget_compiled()
        layers["compiled"] = compiled(place(stock_layer(work)))
    source = random_tensor(work, 0, device)
    target = torch.empty_like(source)
    sides = [lambda: target.copy_(source), *(make_step(layer, work, device) for layer in layers.values())]
    copies, *others = in_turns(sides, rounds, device=device)
    times = dict(zip(layers, others, strict=True))
    floors = [copy * work.bytes_moved / (2 * work.tensor_bytes) for copy in copies]
    ours = times["ours"]
    row = {
        **work.to_dict(),
        "ours_ms": statistics.median(ours),
        "floor_ms": statistics.median(floors),
        "copy_ms": statistics.median(copies),
        "floor_share": _ratio(floors, ours),
        "rounds": rounds,
    }
    for name in ("eager", "compiled"):
        there = name in times
        row[f"{name}_ms"] = statistics.median(times[name]) if there else None
        row[f"{name}_ratio"] = _ratio(times[name], ours) if there else None
    return row


def _ratio(others: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(others, ours, strict=True))
