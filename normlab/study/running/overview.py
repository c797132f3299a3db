"""What a study looks like from outside: its plan before it runs, its state while it does."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.study.axes import Cell
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import FILE, FINISHED, LOCKS, NothingSelected, Store, StoredCell, StoredStudy
from normlab.study.running.local import plan_layout
from normlab.study.spec import StudySpec

if TYPE_CHECKING:
    from normlab.data import Dataset

TIMED_STEPS = 3


def plan_lines(spec: StudySpec, directory: Path, jobs: int | None = None, threads: int | None = None) -> Iterator[str]:
    """One line per cell with its state, then how many are left and about how long they take."""
    from normlab.study.running.run import check_names
    from normlab.study.source import identity, open_data

    check_names(spec)
    dataset = open_data(spec.data_choice())
    cells = spec.cells(len(dataset.train))
    known = _known(directory)
    data = identity(dataset, spec)
    left = []
    for cell in cells:
        stored = known.get(cell.key(data))
        state = "to do" if stored is None or stored.status == "pending" else stored.status
        yield f"{state:<12} {cell.label()}"
        if stored is None or stored.status not in FINISHED:
            left.append(cell)
    yield f"{len(cells)} cells, {len(cells) - len(left)} done, {len(left)} to do"
    if left:
        layout = plan_layout(len(left), jobs=jobs, threads=threads)
        seconds = sum(estimate_seconds(left, dataset, layout.threads)) / layout.jobs
        yield (
            f"about {_duration(seconds)} with {layout.jobs} jobs of {layout.threads} threads, "
            f"judging by {TIMED_STEPS} steps of each kind"
        )


def status_lines(directory: Path) -> Iterator[str]:
    """How many cells are in which state, who is at work, and why what failed did."""
    with Store(directory, readonly=True) as store:
        studies = store.studies()
        if not studies:
            raise NothingSelected(f"{directory} holds no study yet; start one with `normlab compare`")
        for study, settings in zip(studies, _differences(studies), strict=True):
            cells = store.cells(study.cells)
            states = live_states(directory, cells)
            counts = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).most_common())
            which = f", study {study.number} of {study.of} ({settings})" if study.of > 1 else ""
            yield f"{directory}{which}: {len(cells)} cells: {counts}"
            for stored in cells:
                state = states[stored.id]
                if state in ("running", "interrupted"):
                    epochs = len(store.epochs(stored.id))
                    yield f"{state:<12} {stored.cell.label()}: epoch {epochs}/{stored.cell.epochs}"
                elif stored.reason:
                    yield f"{state:<12} {stored.cell.label()}: {stored.reason}"


def _differences(studies: Sequence[StoredStudy]) -> list[str]:
    """What each study has that tells it from the others: its settings, and its images where they have changed."""
    facts = [{**study.spec, "images": str(study.facts.get("data_hash"))[:8]} for study in studies]
    names = [name for name in dict.fromkeys(itertools.chain(*facts)) if len({repr(f.get(name)) for f in facts}) > 1]
    return ["; ".join(f"{name.replace('_', ' ')}: {_listed(f.get(name))}" for name in names) for f in facts]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def live_states(directory: Path, cells: list[StoredCell]) -> dict[int, str]:
    """The state of each cell by id; "running" only if somebody is at work, else "interrupted"."""
    states = {stored.id: stored.status for stored in cells}
    running = [cell for cell, state in states.items() if state == "running"]
    if running:
        with CellLocks(directory / LOCKS) as locks:
            for cell in running:
                if not locks.held_elsewhere(cell):
                    states[cell] = "interrupted"
    return states


def estimate_seconds(cells: list[Cell], dataset: Dataset, threads: int) -> list[float]:
    """Seconds that each cell takes, from timing a few steps of every kind of cell on this machine's CPU."""
    import torch

    from normlab.study.training.cell import Training, shuffled, split_batches

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    known: dict[tuple[str, str, int], float] = {}
    try:
        for cell in cells:
            kind = (cell.norm, cell.model, cell.batch_size)
            if kind in known:
                continue
            training = Training(cell, dataset)
            batches = split_batches(shuffled(len(dataset.train), 0, 1), cell.batch_size)
            training.step(batches[0], 1)  # the first one compiles and allocates
            started = time.perf_counter()
            for index in batches[1 : 1 + TIMED_STEPS] or batches[:1]:
                training.step(index, 1)
            timed = min(TIMED_STEPS, max(1, len(batches) - 1))
            known[kind] = (time.perf_counter() - started) / timed * len(batches)
    finally:
        torch.set_num_threads(before)
    # evaluation is a forward pass, a third of a training step
    evaluation = 1 + len(dataset.val) / len(dataset.train) / 3
    return [known[cell.norm, cell.model, cell.batch_size] * cell.epochs * evaluation for cell in cells]


def _known(directory: Path) -> dict[str, StoredCell]:
    if not (directory / FILE).is_file():
        return {}
    with Store(directory, readonly=True) as store:
        return {stored.key: stored for stored in store.cells()}


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
