"""Real processes, really killed: nothing is lost, nothing is done twice, nobody is left behind."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from normlab.study.keeping.store import Store
from tests.study.processes import (
    HANGS,
    alive,
    children,
    go_on,
    held,
    kill,
    progress,
    results,
    run,
    start,
    wait_until,
    weights,
)

FLAGS = ("--norms", "bn,gn", "--jobs", "2", "--threads", "1", "--augment", "crop,flip")
EPOCHS = 400  # enough that no cell is over while the other's worker starts
STUDY = (*FLAGS, "--epochs", str(EPOCHS))
SHORT = (*FLAGS, "--epochs", "2")


def same_weights(a: Path, b: Path) -> bool:
    found, expected = weights(a), weights(b)
    assert found.keys() == expected.keys()
    return all(torch.equal(found[key][name], t) for key in expected for name, t in expected[key].items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short study, finished."""
    directory = tmp_path_factory.mktemp("finished") / "study"
    code, said = run(*SHORT, directory=directory)
    assert code == 0, said
    return directory


@pytest.mark.slow
def test_twenty_kills_of_workers_and_drivers_leave_no_trace(tmp_path: Path) -> None:
    random.seed(20)
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "study"
    code, said = run(*STUDY, directory=undisturbed)
    assert code == 0, said
    driver = start(*STUDY, directory=directory)
    rounds = ["workers"] * 4 + ["driver"] * 3 + ["everybody"] * 3
    random.shuffle(rounds)
    before: dict[int, int] = {}
    killed = 0
    for victims in rounds:

        def all_moved_on(before: dict[int, int] = before) -> dict[int, int]:
            now = progress(directory, unfinished=True)
            return now if all(epochs > before.get(cell, 0) for cell, epochs in now.items()) else {}

        before = wait_until(all_moved_on)
        time.sleep(random.uniform(0, 0.05))
        workers = children(driver.pid)
        assert len(workers) == len(before) == 2, "a cell was over before it was disturbed enough"
        targets = {"workers": workers, "driver": [driver.pid], "everybody": [driver.pid, *workers]}[victims]
        random.shuffle(targets)
        for target in targets:
            kill(target)
        killed += len(targets)
        if driver.pid in targets:
            driver.wait()
            wait_until(lambda workers=workers: not any(alive(w) for w in workers))
            driver = start(*STUDY, directory=directory)
    assert killed == 20
    assert driver.wait(HANGS) == 0, (tmp_path / "study.log").read_text()
    for cell in results(directory)["cells"]:
        assert cell["status"] == "done"
        assert [r["epoch"] for r in cell["epochs"]] == list(range(1, EPOCHS + 1))
    assert same_weights(directory, undisturbed)
    for a, b in zip(results(directory)["cells"], results(undisturbed)["cells"], strict=True):
        assert a["test"] == b["test"]
        assert [r["val_loss"] for r in a["epochs"]] == [r["val_loss"] for r in b["epochs"]]


def test_one_bit_is_noticed(finished: Path, tmp_path: Path) -> None:
    """The comparison of weights above can fail."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert same_weights(copy, finished)
    path = next(copy.glob("checkpoints/*/final.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not same_weights(copy, finished)


def test_the_same_command_again_trains_nothing(finished: Path) -> None:
    before = results(finished)
    code, said = run(*SHORT, directory=finished)
    assert code == 0
    assert "2 of 2 cells are done already" in said
    assert results(finished)["cells"] == before["cells"]


def test_an_interrupt_ends_it_with_130_and_nobody_is_left(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    # a shell that runs these tests in the background has its children ignore interrupts
    listens = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        driver = start(*SHORT, *held(tmp_path), directory=directory)
    finally:
        signal.signal(signal.SIGINT, listens)
    wait_until(lambda: list(progress(directory).values()) == [1, 1])
    workers = children(driver.pid)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(HANGS) == 130
    assert "Traceback" not in (tmp_path / "study.log").read_text()
    wait_until(lambda: not any(alive(w) for w in workers))
    with Store(directory, readonly=True) as store:
        assert {c.status for c in store.cells()} == {"running"}


def test_two_drivers_share_the_cells_of_one_store(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    flags = ("--norms", "bn,none", "--seeds", "2", "--epochs", "2", "--lr", "0.01", "--jobs", "1", "--threads", "1")
    both = [start(*flags, *held(tmp_path), directory=directory) for _ in range(2)]
    wait_until(lambda: sorted(progress(directory).values()) == [0, 0, 1, 1])
    go_on(tmp_path)
    assert [driver.wait(HANGS) for driver in both] == [0, 0], (tmp_path / "study.log").read_text()
    with Store(directory, readonly=True) as store:
        cells = store.cells()
        attempts = [store.attempts(c.id) for c in cells]
    assert len(cells) == 4
    assert all(c.status == "done" for c in cells)
    assert all(len(a) == 1 for a in attempts), "a cell was trained twice"
    assert len({a["pid"] for of_cell in attempts for a in of_cell}) == 2, "one driver did it all"
