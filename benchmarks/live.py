"""What a look of the live page costs: processor seconds of `/state` and `/figures` after what may have happened.

python -m benchmarks.live [--cells 10000] [--epochs 10] [--rounds 9]

The study is made by hand, not trained: five norms, once with all cells as seeds of one setting and once as one seed of
as many learning rates; all but a dozen cells are done. Seconds are those of the thread that looks, medians of the
rounds; the last column is the time that a judgement beside the page takes, which a rest of ten times as long follows.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from normlab.bench.machine import describe, line
from normlab.report.live import LiveStudy
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import LOCKS, Store
from normlab.study.spec import make_spec

NORMS = ("bn", "gn", "ln", "in", "none")
OPEN = 12  # cells that are not done


class _Bulk(Store):
    """A store that commits many records at once."""

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._db.in_transaction:
            yield
        else:
            with super()._transaction():
                yield


class _Study:
    """A study that this process trains, so to say."""

    def __init__(self, directory: Path, cells: int, epochs: int, *, settings: int) -> None:
        self.store, self._locks = _Bulk(directory), CellLocks(directory / LOCKS)
        rates = ",".join(f"{1e-4 * (1 + i):g}" for i in range(settings))
        seeds = cells // len(NORMS) // settings
        spec = make_spec({"norms": ",".join(NORMS), "seeds": seeds, "epochs": epochs, "lr": rates})
        facts = {"command": "normlab compare", "data": "digits", "test_images": 360}
        self.ids = self.store.begin_study(spec.model_dump(mode="json"), facts, spec.cells(1000), "0" * 32)
        self._attempts: dict[int, int] = {}
        self._random = random.Random(0)
        with self.store._transaction():
            for cell in self.ids[:-OPEN]:
                self.start(cell)
                for epoch in range(1, epochs + 1):
                    self.epoch(cell, epoch)
                self.end(cell)

    def start(self, cell: int) -> None:
        self._locks.acquire(cell)
        self._attempts[cell] = self.store.begin_attempt(cell, {"cpu": "a processor"}) or 0

    def epoch(self, cell: int, epoch: int) -> None:
        record: dict[str, Any] = {"epoch": epoch, "seconds": 2.0, "images_per_second": 500.0, "features": {"a": 1.0}}
        for split in ("train", "val"):
            accuracy = 1 - 1 / (epoch + 2) - 0.02 * self._random.random()
            record |= {f"{split}_loss": 1 - accuracy, f"{split}_accuracy": accuracy}
            record |= {f"{split}_micro_f1": accuracy, f"{split}_macro_f1": accuracy}
        self.store.add_epoch(cell, record)

    def end(self, cell: int) -> None:
        accuracy = 0.9 + 0.02 * self._random.random()
        outcome = {"test": {"loss": 0.5, "accuracy": accuracy, "macro_f1": accuracy}, "parameters": 10}
        self.store.end_attempt(self._attempts.pop(cell), cell, "done", outcome=outcome)
        self._locks.release(cell)

    def close(self) -> None:
        self.store.close()
        self._locks.close()


def main(args: list[str] | None = None) -> None:
    """Measure both studies, and print a row of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9, help="at most ten")
    given = parser.parse_args(args)
    print(line(describe("cpu")))
    print(f"{given.cells} cells of {given.epochs} epochs; processor seconds of /state and /figures")
    print(
        f"{'settings':>8s}  {'first look':>12s}  {'new epoch':>12s}  {'cell ended':>12s}  {'no news':>12s}  judgement"
    )
    for settings in (1, given.cells // len(NORMS)):
        print(_measure(given.cells, given.epochs, min(given.rounds, OPEN - 2), settings), flush=True)


def _measure(cells: int, epochs: int, rounds: int, settings: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        study = _Study(Path(name), cells, epochs, settings=settings)
        for cell in study.ids[-OPEN:-2]:
            study.start(cell)
        page = LiveStudy(Path(name))
        first = _both(page)
        judgement = _judged(page)
        _both(page)
        after = {"epoch": [], "end": [], "nothing": []}
        for cell in study.ids[-OPEN:][:rounds]:
            study.epoch(cell, 1)
            after["epoch"].append(_both(page))
            study.end(cell)
            after["end"].append(_both(page))
            _judged(page)
            after["nothing"].append(_both(page))
        study.close()
    found = [first, *[tuple(map(statistics.median, zip(*times, strict=True))) for times in after.values()]]
    columns = "  ".join(f"{state:5.3f}  {figures:5.3f}" for state, figures in found)
    return f"{settings:8d}  {columns}  {judgement:.1f}"


def _both(page: LiveStudy) -> tuple[float, float]:
    return _seconds(page.state), _seconds(page.figures)


def _seconds(look: Callable[[], object]) -> float:
    started = time.thread_time()
    look()
    return time.thread_time() - started


def _judged(page: LiveStudy) -> float:
    """Processor seconds until a judgement that goes on beside is done."""
    started = time.process_time()
    if page._judging is not None:
        page._judging.join()
    return time.process_time() - started


if __name__ == "__main__":
    main(sys.argv[1:])
