"""A study from beginning to end: data, cells, training, records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normlab.data import Dataset
from normlab.errors import DataError, UsageError, require
from normlab.models.names import is_foreign
from normlab.study.axes import is_own_augmentation
from normlab.study.floors import floors
from normlab.study.keeping.environment import command_line, describe_machine
from normlab.study.keeping.locks import ALL_CELLS, CellLocks
from normlab.study.keeping.mounts import network_mount
from normlab.study.keeping.records import write_results
from normlab.study.keeping.storage import open_storage
from normlab.study.keeping.store import CHECKPOINTS, LOCKS, Store, StoreBusy, StoredCell
from normlab.study.metric import DEFAULT, metric_named
from normlab.study.running.budget import run_within_budget
from normlab.study.running.cluster import ClusterOptions, RayExecutor
from normlab.study.running.console import Console, make_console
from normlab.study.running.driver import Driver, Study
from normlab.study.running.exporting import exporting, tracker_names
from normlab.study.running.inline import InlineExecutor
from normlab.study.running.jobs import STALL, Executor, Job
from normlab.study.running.local import LocalExecutor, plan_layout
from normlab.study.running.torchrun import LeadingExecutor, launched
from normlab.study.running.tuning import SEEDS, tuned
from normlab.study.running.until_sure import MOST, run_until_sure
from normlab.study.source import identity, open_data
from normlab.study.spec import StudySpec
from normlab.study.verdict import MATTERS

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # where none of these is, torch need not be asked


@dataclass(frozen=True)
class Options:
    """How to run a study, as opposed to what it is.

    `jobs` workers of `threads` threads each (see `plan_layout` for what None means) on `device`: "cpu", "cuda"
    (all GPUs), "cuda:0,cuda:1", or "auto", with `per_gpu` cells sharing a GPU. `inline` trains in this process.
    `backend` "ray" trains on a Ray cluster (`normlab.study.running.cluster`); `checkpoints` is a path or an fsspec
    URL that all its machines can reach, by default a folder of the study's directory. A difference of accuracies below
    `matters` counts as none; `metric` is what is compared in their place (`normlab.study.metric`). `budget` is a
    number of seconds, spent where it helps most (`normlab.study.running.budget`). `until_sure` trains seeds only where
    the question is open, and stops when it is settled (`normlab.study.running.until_sure`); None leaves that to
    `or_until_sure`, and is no for a study that is run without it. A training without a step for `stall`
    seconds has failed; None waits for ever. (Nobody watches a training in this process, or under torchrun.)
    `log` names trackers that get every cell's curves (`normlab.study.running.exporting`).
    """

    jobs: int | None = None
    threads: int | None = None
    device: str = "auto"
    per_gpu: int = 1
    inline: bool = False
    baseline: str | None = None
    matters: float = MATTERS
    metric: str = DEFAULT
    retry_failed: bool = False
    fail_fast: bool = False
    force: bool = False
    budget: float | None = None
    until_sure: bool | None = None
    stall: float | None = STALL
    backend: str = "local"
    cluster: ClusterOptions | None = None
    checkpoints: str | None = None
    log: str | Sequence[str] = ()


def run_study(
    spec: StudySpec,
    directory: Path,
    options: Options | None = None,
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run what is not done yet of a study, and write results.json and results.csv.

    Answers the content of results.json. Cells that are done in `directory` already are not trained again.
    """
    options = options or Options()
    check_names(spec, options.baseline)
    check_options(options, directory)
    with ExitStack() as stack:
        console = exporting(console or make_console(), options.log, directory)
        stack.enter_context(console)
        dataset = open_data(spec.data_choice(), progress=console.data)
        for note in dataset.notes:
            console.notice(f"note: {' '.join(note.split())}")
        spec = with_seeds(spec, options)
        cells = spec.cells(len(dataset.train))
        for setting in dict.fromkeys(cell.augment for cell in cells):
            if is_own_augmentation(setting):
                from normlab.study.training.augmenting import try_augmentation

                try_augmentation(setting, dataset)
        for model in (m for m in spec.models if is_foreign(m) or spec.weights):
            from normlab.study.training.contract import check_contract

            for note in check_contract(model, spec.norms, dataset, spec.weights):
                console.notice(f"note: {note}")
        store, locks = open_directory(directory, stack)
        if (kind := network_mount(directory)) is not None:
            if not locks.acquire(ALL_CELLS):
                raise StoreBusy(
                    f"another command works on {directory}, which lies on a network file system ({kind}): only one may"
                )
            console.notice(
                f"{directory} lies on a network file system ({kind}): its store is kept without a write-ahead log, "
                "and one command at a time may work on it"
            )
        checkpoints = options.checkpoints or str((directory / CHECKPOINTS).resolve())
        executor = make_executor(spec, options, dataset, len(cells), locks, directory)
        stack.callback(executor.close)
        driver = Driver(
            store,
            locks,
            executor,
            _job_maker(spec, checkpoints, dataset.hash),
            console,
            describe_machine(),
            retry_failed=options.retry_failed or options.force,
            fail_fast=options.fail_fast or launched(),  # after a failure the processes may not be in step
            deadline=None if options.budget is None else time.monotonic() + options.budget,
        )
        forget = (lambda ids: _reset_cells(store, locks, ids, directory, checkpoints)) if options.force else None
        facts = study_facts(dataset, options)
        study = Study(spec.model_dump(mode="json"), facts, identity(dataset, spec), driver, forget)
        if spec.tune:
            cells = tuned(study, cells, spec, seeds=SEEDS if options.until_sure else 1)
        if options.until_sure:
            run_until_sure(study, cells)
        elif options.budget is None:
            driver.run(study.enter(cells))
        else:
            run_within_budget(study, study.enter(cells))
        return write_results(store, directory)


def or_until_sure(spec: StudySpec, options: Options) -> Options:
    """The options of a study that trains until it is sure unless told otherwise.

    It is told by its seeds, if they are named; and where there is one norm there is nothing to be sure of.
    """
    if options.until_sure is not None:
        return options
    return replace(options, until_sure="seeds" not in spec.model_fields_set and len(spec.norms) > 1)


def with_seeds(spec: StudySpec, options: Options) -> StudySpec:
    """The spec as it is run: a study that trains until it is sure has seeds to choose from."""
    if options.until_sure and "seeds" not in spec.model_fields_set:
        return spec.model_copy(update={"seeds": tuple(range(MOST))})
    return spec


def check_options(options: Options, directory: Path) -> None:
    """Raise UsageError for a backend, a metric, a tracker or a directory that cannot be had."""
    if options.backend not in ("local", "ray"):
        raise UsageError(f"--backend {options.backend!r} is not known; expected one of: local, ray")
    if options.backend == "ray":
        require("--backend ray", "ray")
    if "://" in (options.checkpoints or ""):
        require("--checkpoints with a URL", "ray", "fsspec")
    metric_named(options.metric)
    tracker_names(options.log)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--out {directory} is a file; expected a directory")


def check_names(spec: StudySpec, baseline: str | None = None) -> None:
    """Import the spec's plug-ins and raise UsageError for a norm or model that there is not."""
    from normlab.models.names import check_model, check_norm
    from normlab.study.plugins import load_plugin

    for plugin in spec.plugins:
        load_plugin(plugin)
    for norm in spec.norms:
        check_norm(norm)
    for model in spec.models:
        check_model(model)
    if spec.weights and not Path(spec.weights).is_file():
        raise UsageError(f"--weights {spec.weights}: there is no such file")
    if baseline is not None and baseline not in spec.norms:
        raise UsageError(f"--baseline {baseline!r} is not among the norms compared: {', '.join(spec.norms)}")


def open_directory(directory: Path, stack: ExitStack) -> tuple[Store, CellLocks]:
    """The store and the locks of a directory, made if need be; closed with `stack`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        locks = stack.enter_context(CellLocks(directory / LOCKS))
    except OSError as e:
        raise DataError(f"--out {directory} cannot be written: {e.strerror}") from e
    return stack.enter_context(Store(directory)), locks


def study_facts(dataset: Dataset, options: Options) -> dict[str, Any]:
    """What a report says about a study besides its spec."""
    return {
        "command": command_line(),
        "data": dataset.name,
        "data_hash": dataset.hash,
        "class_names": list(dataset.class_names),
        "image_shape": [dataset.channels, *dataset.size],
        "channel_mean": dataset.channel_mean.tolist(),
        "channel_std": dataset.channel_std.tolist(),
        "levels": list(dataset.levels),
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "test_images": len(dataset.test),
        "notes": list(dataset.notes),
        "baseline": options.baseline,
        "matters": options.matters,
        "metric": options.metric,
        "floors": floors(dataset),
    }


def make_executor(
    spec: StudySpec, options: Options, dataset: Dataset, cells: int, locks: CellLocks, directory: Path
) -> Executor:
    """The place where that many cells are to run, as the options say."""
    if launched() and (options.backend != "local" or (options.jobs or 1) > 1):
        raise UsageError("under torchrun all processes train one cell at a time; leave out --backend and --jobs")
    if options.backend == "ray":
        threads = options.threads or 1
        asked = options.cluster or ClusterOptions()
        gpus = 0.0 if options.device == "cpu" else asked.gpus
        cluster = replace(asked, threads=threads, gpus=gpus)
        return RayExecutor(cluster, at_once=options.jobs or cells, plugins=spec.plugins, stall=options.stall)
    devices = find_devices(options.device)
    if launched():
        return LeadingExecutor(spec, dataset, devices)
    if options.inline:
        return InlineExecutor(dataset, devices[0])
    layout = plan_layout(cells, jobs=options.jobs, threads=options.threads, devices=devices, per_gpu=options.per_gpu)
    logs = directory / "logs"
    return LocalExecutor(layout, lock=locks.fileno(), logs=logs, plugins=spec.plugins, stall=options.stall)


def find_devices(wanted: str) -> list[str]:
    """Names of the devices to train on. Raises UsageError for one that is not there."""
    if wanted == "cpu":
        return ["cpu"]
    if wanted == "auto" and not any(Path(gpu).exists() for gpu in _GPU_DRIVERS):
        return ["cpu"]
    import torch

    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if wanted == "auto":
        return there or ["cpu"]
    names = there if wanted == "cuda" else wanted.split(",")
    missing = [name for name in names if name not in there]
    if missing or not names:
        absent = ", ".join(missing) or "a GPU"
        raise UsageError(f"--device {wanted!r}: {absent} is not there; there are: {', '.join(['cpu', *there])}")
    return names


def _job_maker(spec: StudySpec, checkpoints: str, data_hash: str) -> Callable[[StoredCell], Job]:
    choice = spec.data_choice()
    return lambda stored: Job(
        stored.id, stored.key, stored.cell, choice, f"{checkpoints}/{stored.key}", data_hash=data_hash
    )


def _reset_cells(store: Store, locks: CellLocks, ids: list[int], directory: Path, checkpoints: str) -> None:
    """Take cells back to the beginning. Raises StoreBusy if somebody is training one of them."""
    held = [cell for cell in ids if locks.acquire(cell)]
    try:
        if len(held) < len(ids):
            raise StoreBusy(f"--force: another process is training cells in {directory}; wait for it, or stop it")
        store.forget(held)
        for stored in store.cells(held):
            kept = open_storage(f"{checkpoints}/{stored.key}")
            for name in kept.names():
                kept.delete(name)
    finally:
        for cell in held:
            locks.release(cell)
