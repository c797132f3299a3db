"""What a study looks like from outside: its plan before it runs, its state while it does."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.study.axes import Cell
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import FILE, FINISHED, LOCKS, NothingSelected, Store, StoredCell, StoredStudy
from normlab.study.running.budget import duration
from normlab.study.running.driver import MOST_FAILURES
from normlab.study.running.local import plan_layout
from normlab.study.running.tuning import SEEDS, foreseen
from normlab.study.running.until_sure import FEWEST
from normlab.study.spec import StudySpec

if TYPE_CHECKING:
    from normlab.data import Dataset
    from normlab.study.running.run import Options

TIMED_STEPS = 3


def plan_lines(spec: StudySpec, directory: Path, options: Options) -> Iterator[str]:
    """One line per cell with its state, then how many are left and about how long they take.

    The states are those of `status_lines`. Of a study that tunes, the trials come first; the cells of its seeds are
    known when these are done. Raises what `run_study` raises of the same arguments before it trains.
    """
    from normlab.study.running.run import check_names, check_options, find_devices, with_seeds
    from normlab.study.source import identity, open_data

    check_names(spec, options.baseline)
    check_options(options, directory)
    local = options.backend == "local"
    devices = find_devices(options.device) if local else []
    dataset = open_data(spec.data_choice())
    spec = with_seeds(spec, options)
    data = identity(dataset, spec)
    found = _StoredStates(directory, spec, dataset.hash)
    cells, more = _foresee_cells(spec, spec.cells(len(dataset.train)), options, found.cells)
    done, left = 0, []
    for cell in cells:
        stored = found.stored.get(cell.key(data))
        state = "pending" if options.force or stored is None else found.states[stored.id]
        yield f"{'to do' if state == 'pending' else state:<12} {cell.label()}"
        done += state in FINISHED
        given_up = stored is not None and stored.id in found.given_up and not (options.retry_failed or options.force)
        if state not in FINISHED and not given_up:
            left.append(cell)
    yield f"{len(cells)} cells, {done} done, {len(left)} to do"
    yield from more
    if not local:
        yield f"on {options.backend}, which finds room for them; how long they take there is not estimated"
    elif left:
        layout = plan_layout(
            len(left), jobs=options.jobs, threads=options.threads, devices=devices, per_gpu=options.per_gpu
        )
        of_each = estimate_seconds(left, dataset, layout.threads, devices[0])
        seconds = sum(of_each) / layout.jobs
        yield (
            f"about {duration(seconds)} with {layout.jobs} jobs of {layout.threads} threads on {', '.join(devices)}, "
            f"judging by {TIMED_STEPS} steps of each kind"
        )
        if options.until_sure and len(spec.seeds) > FEWEST:
            least = sum(t for cell, t in zip(left, of_each, strict=True) if cell.seed in spec.seeds[:FEWEST])
            yield f"at least {duration(least / layout.jobs)}, for {FEWEST} seeds of each"
        if options.budget is not None and seconds > options.budget:
            yield f"of which --budget allows {duration(options.budget)}: what tells least is left out"


def _foresee_cells(
    spec: StudySpec, cells: list[Cell], options: Options, entered: list[Cell]
) -> tuple[list[Cell], list[str]]:
    """The cells that are known of a study, and what is to be said of those that are not."""
    said = ["at most: with --until-sure seeds stop when the question is settled"] if options.until_sure else []
    if not spec.tune:
        return cells, said
    trials, count = foreseen(cells, spec, seeds=SEEDS if options.until_sure else 1)
    known = list(dict.fromkeys([*trials, *entered]))
    return known, [
        f"--tune {','.join(spec.tune)}: {count} trials at most, "
        f"then {len(cells)} cells at the values that they find best",
        *said,
    ]


class _StoredStates:
    """What a directory holds of a study before it is begun again: its cells, their states as `status` has them."""

    def __init__(self, directory: Path, spec: StudySpec, data_hash: str) -> None:
        self.stored: dict[str, StoredCell] = {}
        self.states: dict[int, str] = {}
        self.given_up: set[int] = set()
        self.cells: list[Cell] = []
        if not (directory / FILE).is_file():
            return
        own = spec.model_dump(mode="json")
        with Store(directory, readonly=True) as store:
            every = store.cells()
            self.stored = {stored.key: stored for stored in every}
            self.states = live_states(directory, every)
            failed = (stored.id for stored in every if stored.status == "failed")
            self.given_up = {cell for cell in failed if store.failures(cell) >= MOST_FAILURES}
            for study in store.studies():
                if study.spec == own and study.facts.get("data_hash") == data_hash:
                    self.cells = [stored.cell for stored in store.cells(study.cells)]


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
    """What distinguishes each study from the others: its settings, and its images where they have changed."""
    facts = [{**study.spec, "images": str(study.facts.get("data_hash"))[:8]} for study in studies]
    names = [name for name in dict.fromkeys(itertools.chain(*facts)) if len({repr(f.get(name)) for f in facts}) > 1]
    return ["; ".join(f"{name.replace('_', ' ')}: {_format_value(f.get(name))}" for name in names) for f in facts]


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def live_states(directory: Path, cells: list[StoredCell]) -> dict[int, str]:
    """The state of each cell by id; "running" only if somebody is at work, else "interrupted"."""
    states = {stored.id: stored.status for stored in cells}
    running = [cell for cell, state in states.items() if state == "running"]
    if running and not os.access(directory / LOCKS, os.W_OK):
        return states | dict.fromkeys(running, "interrupted")  # a medium that nobody can be at work on
    if running:
        with CellLocks(directory / LOCKS) as locks:
            for cell in running:
                if not locks.held_elsewhere(cell):
                    states[cell] = "interrupted"
    return states


def estimate_seconds(cells: list[Cell], dataset: Dataset, threads: int, device: str = "cpu") -> list[float]:
    """Seconds that each cell takes, from timing a few steps of every kind of cell on a device of this machine."""
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
            training = Training(cell, dataset, device)
            batches = split_batches(shuffled(len(dataset.train), 0, 1), cell.batch_size)
            training.step(batches[0], 1)  # the first one compiles and allocates
            training.see_losses(1)  # which waits for the device
            started = time.perf_counter()
            for index in batches[1 : 1 + TIMED_STEPS] or batches[:1]:
                training.step(index, 1)
            training.see_losses(1)
            timed = min(TIMED_STEPS, max(1, len(batches) - 1))
            known[kind] = (time.perf_counter() - started) / timed * len(batches)
    finally:
        torch.set_num_threads(before)
    # evaluation is a forward pass, a third of a training step
    evaluation = 1 + len(dataset.val) / len(dataset.train) / 3
    return [known[cell.norm, cell.model, cell.batch_size] * cell.epochs * evaluation for cell in cells]
