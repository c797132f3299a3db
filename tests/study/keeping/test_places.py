"""Where a study may lie: on a read-only medium, on a network, under a name that is no UTF-8, and nowhere any more."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from normlab.cli import main
from normlab.errors import DataError
from normlab.study.keeping import mounts
from normlab.study.keeping.locks import ALL_CELLS, CellLocks
from normlab.study.keeping.mounts import network_mount
from normlab.study.keeping.records import gathered
from normlab.study.keeping.store import FILE, LOCKS, Store, StoreBusy
from normlab.study.running.jobs import Event, Job
from normlab.study.running.overview import status_lines
from normlab.study.running.run import Options, run_study
from normlab.study.spec import make_spec
from tests.study.fakes import Scripted, Silent
from tests.study.keeping.test_damage import written
from tests.study.running.test_tuning import trained

__all__ = ["written"]
SPEC = make_spec({"norms": "bn", "epochs": 2, "limit_train": 40, "limit_eval": 20, "batch_sizes": 8})


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a medium that cannot be written: SQLite opens a store only where it is said never to change."""
    connect = sqlite3.connect

    def refuse(name: str, **options: Any) -> sqlite3.Connection:
        return connect(name if "immutable=1" in name else "file:/nowhere/at/all?mode=ro", **options)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)


# It was "unable to open database file; free some space".
@pytest.mark.usefixtures("read_only")
def test_a_study_on_a_read_only_medium_is_read(written: Path) -> None:
    with Store(written, readonly=True) as store:
        assert len(gathered(store)["cells"]) == 3
    assert next(status_lines(written)).endswith("3 cells: 3 done")


@pytest.mark.usefixtures("read_only")
def test_a_log_that_cannot_be_finished_is_told(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written, tmp_path / "copy"))
    (copy / f"{FILE}-wal").write_bytes(b"records")
    with pytest.raises(DataError, match="was not closed"):
        Store(copy, readonly=True)


MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /home/a\040b rw shared:2 - nfs4 server:/export rw
41 40 8:2 / /home/a\040b/disk rw - xfs /dev/sdb1 rw
42 22 0:36 / /mnt/over rw - nfs server:/old rw
43 22 0:37 / /mnt/over rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/var/runs", None), ("/home/a b/runs", "nfs4"), ("/home/a b/disk/runs", None), ("/mnt/over/x", None)],
)
def test_network_file_systems_are_known(
    place: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    assert network_mount(Path(place)) == kind
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "not there")
    assert network_mount(Path(place)) is None


# SQLite's write-ahead log does not work over a network, and was used there.
def test_a_store_on_a_network_has_no_log_and_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("keeping.store", "running.run"):
        monkeypatch.setattr(f"normlab.study.{module}.network_mount", lambda path: "nfs4")
    monkeypatch.setattr("normlab.study.running.run.make_executor", lambda *_: Scripted(trained))
    console = Silent()
    run_study(SPEC, tmp_path, Options(), console=console)
    assert any("network file system (nfs4)" in notice for notice in console.notices)
    with Store(tmp_path) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    with CellLocks(tmp_path / LOCKS) as somebody:
        assert somebody.acquire(ALL_CELLS)
        with pytest.raises(StoreBusy, match="only one may"):
            run_study(SPEC, tmp_path, Options(), console=Silent())


def test_a_directory_that_is_deleted_while_training_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "study"

    def answer(job: Job) -> list[Event]:
        shutil.rmtree(directory)
        return trained(job)

    monkeypatch.setattr("normlab.study.running.run.make_executor", lambda *_: Scripted(answer))
    with pytest.raises(DataError, match="deleted or moved away"):
        run_study(SPEC, directory, Options(), console=Silent())


def test_workers_end_without_their_logs(tmp_path: Path) -> None:
    from normlab.study.running.local import Layout, LocalExecutor

    executor = LocalExecutor(Layout(1, 1), lock=os.open(tmp_path, os.O_RDONLY), logs=tmp_path / "logs")
    executor._new_worker()
    shutil.rmtree(tmp_path / "logs")
    with pytest.raises(DataError, match="cannot write"):
        executor._new_worker()
    executor.close()


# A path that is not UTF-8 ended in a traceback when it was printed.
@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_utf8_is_spelled_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/stud\xff")

    def answer(job: Job) -> list[Event]:
        events = trained(job)
        for event in events[:-1]:
            event["record"] |= {"train_loss": 1.0, "train_accuracy": 0.5, "images_per_second": 9.0}
        return events

    monkeypatch.setattr("normlab.study.running.run.make_executor", lambda *_: Scripted(answer))
    monkeypatch.setattr("normlab.report.sections.build", lambda study: [])
    monkeypatch.setattr("sys.argv", ["normlab", "compare", "--out", directory])
    small = ["compare", "digits", "--norms", "bn", "--epochs", "2", "--limit-train", "40", "--limit-eval", "20"]
    for arguments in ([*small, "--no-report", "--out", directory], ["status", directory],
                      ["report", directory, "--format", "md"],
                      *(["export", directory, "--format", form] for form in ("csv", "json", "parquet")),
                      ["status", f"{directory}\udcfe"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == (6 if arguments[-1].endswith("\udcfe") else 0), said.err
        assert "stud\\udcff" in said.out + said.err
