"""The bytes that the kernels move, counted as they run in Triton's interpreter: `python -m benchmarks.gpu.traffic`.

| column | what it counts |
|---|---|
| floor | the fewest bytes of forward and backward (`normlab.bench.work.Work.bytes_moved`) |
| memory | every launch's loads and stores, each address once: as if what is read again were in a cache |
| asked | all loads and stores |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are defined

import torch
from triton.runtime.interpreter import InterpreterBuilder

import normlab
from normlab.bench.sides import make_step, our_layer
from normlab.bench.work import NORMS, POSITION_NORMS, Work, size
from normlab.kernels.gpu import _cut


class Counter:
    """What has been loaded and stored since `launch` was called."""

    def __init__(self) -> None:
        self.asked = self.memory = self.launches = 0
        self.seen: dict[tuple[bool, int], list[np.ndarray]] = {}  # addresses, by whether stored, and their width

    def launch(self) -> None:
        """The launch before has ended."""
        for (_, width), touched in self.seen.items():
            self.memory += width * len(np.unique(np.concatenate(touched)))
        self.seen.clear()

    def take(self, pointers: Any, mask: Any, store: bool) -> None:
        """The addresses of those elements that the mask lets through."""
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data.reshape(-1)[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1).astype(bool)]
        self.asked += width * addresses.size
        self.seen.setdefault((store, width), []).append(addresses)


@contextmanager
def counting() -> Iterator[Counter]:
    """Within the block, what the interpreter loads and stores is counted."""
    counter = Counter()
    load, store, call = (
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store, _cut.Ready.__call__,
    )  # fmt: skip

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counter.take(pointers, mask, False)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.take(pointers, mask, True)
        return store(self, pointers, value, mask, *rest)

    def counted_call(self: _cut.Ready, aligned: bool, *tensors: Any) -> None:
        call(self, aligned, *tensors)
        counter.launches += 1
        counter.launch()

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counted_load, counted_store
    _cut.Ready.__call__ = counted_call  # type: ignore[method-assign]
    try:
        yield counter
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
        _cut.Ready.__call__ = call  # type: ignore[method-assign]


def count(work: Work) -> Counter:
    """The traffic of forward and backward."""
    step = make_step(our_layer(work).to(getattr(torch, work.dtype)), work, "cpu")
    with normlab.use_backend("triton_gpu"), counting() as counter:
        step()
    return counter


def works() -> list[Work]:
    """Every norm, plain and in its largest form, and positions."""
    images, rows = (2, 8, 28, 28), (48, 256)
    planes = [Work(norm, images, residual=act is not None, act=act) for norm in NORMS for act in (None, "relu")]
    return [*planes, *(Work(norm, images if norm == "channelnorm" else rows) for norm in POSITION_NORMS)]


def main() -> None:
    """Print the table."""
    print("| norm | form | shape, float32 | launches | floor, kB | memory / floor | asked / floor |")
    print("| --- | --- | --- | --: | --: | --: | --: |", flush=True)
    for work in works():
        found, floor = count(work), work.bytes_moved
        ratios = f"{found.memory / floor:.2f} | {found.asked / floor:.2f}"
        print(
            f"| {work.norm} | {work.form} | {size(work.shape)} | {found.launches} | {floor / 1e3:.0f} | {ratios} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
