"""Several studies in one directory: every command reports, judges and exits by its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import normlab
from normlab.cli import main
from normlab.errors import UsageError
from normlab.report import summary, verdict
from normlab.report.records import read
from normlab.study.keeping.records import collect
from normlab.study.keeping.store import Store
from normlab.study.running.jobs import Event, Job
from tests.study.conftest import make_cell
from tests.study.fakes import Scripted
from tests.study.running.test_tuning import trained

FACTS = {"data_hash": "other data", "test_images": 100}
OTHER = make_cell(norm="ln", seed=5)


def begin_another(directory: Path) -> None:
    """What a second `compare` with another spec does to the directory: its cell is waiting."""
    with Store(directory) as store:
        store.begin_study({"norms": ["ln"], "epochs": 7}, FACTS, [OTHER], "other data")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A directory in which a second study was begun while the first one trained; the first one's exit and words."""
    directory = tmp_path_factory.mktemp("shared") / "study"
    lines: list[str] = []

    def answer(job: Job) -> list[Event]:
        begin_another(directory)
        events = trained(job, lambda job: {"bn": 0.9, "gn": 0.5}[job.cell.norm])
        for event in events[:-1]:
            event["record"] |= {"train_loss": 1.0, "train_accuracy": 0.5, "images_per_second": 9.0}
        return events

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("normlab.study.running.run.make_executor", lambda *_: Scripted(answer))
        patched.setattr("typer.echo", lambda text="", **_: lines.append(str(text)))
        with pytest.raises(SystemExit) as ended:
            main(
                ["compare", "digits", "--norms", "bn,gn", "--seeds", "2", "--epochs", "2", "--limit-train", "40",
                 "--no-report", "--out", str(directory)]
            )  # fmt: skip
    return directory, int(ended.value.code or 0), "\n".join(lines)


# The first of two commands reported the cells of the second, said "No verdict" and ended with 1.
def test_a_command_reports_and_exits_by_its_own_study(shared: tuple[Path, int, str]) -> None:
    directory, code, said = shared
    assert code == 0, said
    assert "Use bn" in said
    assert "study: 1 of 2 in this directory" in said
    results = json.loads((directory / "results.json").read_text())
    assert {cell["norm"] for cell in results["cells"]} == {"bn", "gn"}
    assert (results["study"], results["studies"]) == (1, 2)


def test_status_lists_every_study_with_what_tells_it_from_the_others(
    shared: tuple[Path, int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", str(shared[0])])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    first, second = said.splitlines()
    assert "study 1 of 2" in first
    assert "norms: bn, gn" in first
    assert first.endswith("4 cells: 4 done")
    assert "study 2 of 2" in second
    assert "epochs: 7" in second
    assert second.endswith("1 cells: 1 pending")


@pytest.mark.parametrize(
    "norms",
    [lambda d, n: [c["norm"] for c in collect(Store(d, readonly=True), n)["cells"]], lambda d, n: read(d, n).norms],
)
def test_every_reader_takes_the_number(shared: tuple[Path, int, str], norms: Any) -> None:
    directory = shared[0]
    assert set(norms(directory, 1)) == {"bn", "gn"}
    assert set(norms(directory, 2)) == {"ln"}
    assert set(norms(directory, None)) == {"ln"}, "the one begun last"
    with pytest.raises(UsageError, match=r"--study 3.* holds 2"):
        norms(directory, 3)


def test_export_report_and_python_take_the_number(
    shared: tuple[Path, int, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(shared[0])
    monkeypatch.setattr("normlab.report.sections.build", lambda study: [])  # which takes seconds
    for arguments in (
        ["export", directory, "--study", "1", "-o", str(tmp_path / "rows.csv")],
        ["report", directory, "--study", "1", "--format", "md"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, capsys.readouterr().err
    assert "bn" in (tmp_path / "rows.csv").read_text()
    assert "Use bn" in (shared[0] / "report.md").read_text()
    assert "Use bn" in summary(directory, 1)
    assert verdict(directory, number=1) == str(normlab.open_study(directory, 1).verdict)
    assert str(normlab.open_study(directory).verdict) != verdict(directory, number=1)


def test_a_study_entered_again_is_the_same_one(tmp_path: Path) -> None:
    with Store(tmp_path) as first, Store(tmp_path) as second:
        first.begin_study({"a": 1, "b": 2}, FACTS, [OTHER], "data")
        second.begin_study({"a": 2}, FACTS, [make_cell()], "data")
        first.begin_study({"b": 2, "a": 1}, {**FACTS, "matters": 0.02}, [OTHER], "data")
        assert [(s.number, s.of, s.cells) for s in first.studies()] == [(1, 2, [1]), (2, 2, [2])]
        assert [store.study().number for store in (first, second)] == [1, 2]  # type: ignore[union-attr]
        second.begin_study({"a": 2}, {**FACTS, "data_hash": "changed"}, [make_cell()], "changed")
        assert [s.number for s in second.studies()] == [1, 2, 3], "other images are another study"


# Findings about one study's networks were drawn into the report of every study of the directory.
def test_findings_belong_to_their_study(shared: tuple[Path, int, str]) -> None:
    path = shared[0] / "explain.json"
    path.write_text('{"study": 2}')
    try:
        assert read(shared[0], 1).explained is None
        assert read(shared[0], 2).explained == {"study": 2}
    finally:
        path.unlink()
