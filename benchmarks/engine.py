"""What the study engine costs beside the training itself: per cell, per epoch, and for a thousand cells.

python -m benchmarks.engine
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from normlab.bench.machine import describe, line
from normlab.data import Dataset
from normlab.study.keeping.checkpoint import CheckpointDirectory
from normlab.study.keeping.store import FILE, Store
from normlab.study.running.run import Options, run_study
from normlab.study.source import open_data
from normlab.study.spec import make_spec
from normlab.study.training.cell import Training, train_cell

TRIVIAL_MS, SHARE = 50.0, 0.03  # wanted: at most so much for a trivial cell, and of a cell of a minute
CELLS = 60
MINUTE, EPOCHS = 60.0, 100
TINY = {"models": "resnet8:width=4", "limit_train": 16, "limit_eval": 16, "batch_sizes": 16, "epochs": 1, "lrs": 0.01}


def main(args: list[str] | None = None) -> None:
    """Measure, and print a line, or with --json a record, for each."""
    records = [trivial_cells(), minute_cell(), thousand_cells()]
    if "--json" in (sys.argv[1:] if args is None else args):
        print(json.dumps({"machine": describe("cpu"), "records": records}, indent=1))
        return
    print(line(describe("cpu")))
    for record in records:
        print(f"{record['what']}: {record['measured']} (wanted: {record['wanted']})")


def trivial_cells() -> dict[str, Any]:
    """Seconds that a cell takes through store, worker, pipe and checkpoint, less those of training it."""
    spec = make_spec({**TINY, "norms": "none", "seeds": CELLS})
    dataset = open_data(spec.data_choice())
    torch.set_num_threads(1)
    cells = spec.cells(len(dataset.train))
    alone = []
    for cell in cells:
        started = time.perf_counter()
        train_cell(cell, dataset)
        alone.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        stamps = _Stamps()
        run_study(spec, Path(folder), Options(jobs=1, threads=1, device="cpu"), console=stamps)
    # from end to end, so that the start of the worker is not in it
    through = [b - a for a, b in zip(stamps.ends, stamps.ends[1:], strict=False)]
    ms = 1000 * (statistics.median(through) - statistics.median(alone))
    return {
        "what": "engine's share of a trivial cell",
        "measured": f"{ms:.1f} ms",
        "wanted": f"at most {TRIVIAL_MS:g} ms",
        "ms": ms,
    }


def minute_cell() -> dict[str, Any]:
    """Share of a cell of a minute and a hundred epochs that goes to keeping its state."""
    spec = make_spec({**TINY, "models": "resnet14", "norms": "bn", "epochs": EPOCHS})
    dataset = open_data(spec.data_choice())
    training = Training(spec.cells(len(dataset.train))[0], dataset)
    training.run_epoch()
    # what a hundred epochs leave to keep
    training.records *= EPOCHS
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointDirectory(folder, print)
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            checkpoints.keep(training)
            seconds.append(time.perf_counter() - started)
    share = statistics.median(seconds) * EPOCHS / MINUTE
    return {
        "what": f"checkpoints of resnet14 after each of {EPOCHS} epochs, of a cell of {MINUTE:g} s",
        "measured": f"{100 * share:.2f} %",
        "wanted": f"at most {100 * SHARE:g} %",
        "share": share,
    }


def thousand_cells() -> dict[str, Any]:
    """The driver's seconds and the store's size for a thousand cells of ten epochs, training aside."""
    spec = make_spec({**TINY, "norms": "bn"})
    dataset = open_data(spec.data_choice())
    (cell,) = spec.cells(len(dataset.train))
    training = Training(cell, dataset)
    training.run_epoch()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        _record(Path(folder), [replace(cell, seed=seed) for seed in range(1000)], training.records[0], dataset)
        seconds = time.perf_counter() - started
        size = (Path(folder) / FILE).stat().st_size
    return {
        "what": "1,000 cells of ten epochs, driver and store",
        "measured": f"{seconds:.1f} s, {size / 2**20:.1f} MiB",
        "wanted": "seconds and megabytes",
        "seconds": seconds,
        "bytes": size,
    }


def _record(folder: Path, cells: list[Any], record: dict[str, Any], dataset: Dataset) -> None:
    with Store(folder) as store:
        for cell in store.begin_study({}, {}, cells, dataset.hash):
            attempt = store.begin_attempt(cell, {})
            assert attempt is not None
            for epoch in range(1, 11):
                store.add_epoch(cell, {**record, "epoch": epoch})
            store.end_attempt(attempt, cell, "done")


class _Stamps:
    """A console that notes when cells end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def ended(self, job: Any, status: str, reason: str | None) -> None:
        self.ends.append(time.perf_counter())

    def expect(self, cells: int, done: int) -> None: ...
    def started(self, job: Any) -> None: ...
    def epoch(self, job: Any, record: dict[str, Any]) -> None: ...
    def notice(self, text: str) -> None: ...
    def data(self, done: int, total: int, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


if __name__ == "__main__":
    main()
