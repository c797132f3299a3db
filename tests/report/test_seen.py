"""Looks that read only what is new show what a first look shows, whatever has happened in between."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the live page needs the serve extra: pip install 'normlab[serve]'")

from normlab.report import live, theme
from normlab.report.figures import curves as of_curves
from normlab.report.figures.curves import curves
from normlab.report.live import CURVES, LiveStudy
from normlab.report.records import read
from normlab.report.seen import Epochs, Seen
from normlab.study.keeping.store import FILE, FINISHED, Store
from tests.report.running import Running


def shown(page: LiveStudy) -> tuple[Any, ...]:
    """What a page shows, but for how long ago that was."""
    states = [{**page.state(status=status), "age": 0} for status in ("", "done")]
    settings = range(-1, len(states[0]["settings"]))
    if page._judging:
        page._judging.join()
    return states, [page.figures(setting) for setting in settings]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def all_that_is_judged(results: dict[str, Any]) -> Any:
    """In the place of the verdict: what it would be made of."""
    return SimpleNamespace(sentence=repr([{**cell, "epochs": list(cell["epochs"])} for cell in results["cells"]]))


# A page that looked only at what was new would go wrong where something is taken back.
def test_later_looks_show_what_a_first_one_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_SETTINGS", 1)
    monkeypatch.setattr(live, "judge_results", all_that_is_judged)
    monkeypatch.setattr(of_curves, "_drawing", lambda *looks: {"looks": looks})  # which takes Altair its time
    chance, study = random.Random(0), Running(tmp_path, seeds=2, lr="0.1,0.2", epochs=5)
    page, at, seen = LiveStudy(tmp_path), dict.fromkeys(study.ids, 0), set()
    for _ in range(30):
        cell = chance.choice(study.ids[:4])
        (stored,) = study.store.cells([cell])
        if cell not in study.attempts:
            if stored.status in FINISHED or chance.random() < 0.3:
                study.store.forget([cell])
                at[cell] = 0
                seen.add("forgotten")
            else:
                study.start(cell)
        elif at[cell] < 5 and chance.random() < 0.6:
            at[cell] += 1
            study.epoch(cell, at[cell])
        else:
            status = chance.choice(["failed", "paused", "diverged", "done"])
            study.end(cell, status, "out of memory" if status == "failed" else None)
        seen.add(study.store.cells([cell])[0].status)
        assert shown(page) == shown(LiveStudy(tmp_path))
    assert seen == {"running", "forgotten", "failed", "paused", "diverged", "done", "pending"}
    study.close()


def test_curves_are_those_that_a_report_draws_of_the_same_cells(tmp_path: Path) -> None:
    study = Running(tmp_path, seeds=4, epochs=3)
    page = LiveStudy(tmp_path)
    for number, cell in enumerate(study.ids[:-1]):
        study.start(cell)
        for epoch in range(1, 4 - number % 2):
            study.epoch(cell, epoch)
            page.figures()
        study.end(cell)
    records = read(tmp_path)
    cells = {norm: [cell for cell in records.cells if cell.norm == norm] for norm in records.norms}
    styles = theme.styles(records.norms)
    for figure, (column, title, share) in zip(page.figures(), CURVES, strict=True):
        drawn = curves(cells, column, title, column, styles, share=share)
        assert (figure["caption"], figure["spec"]) == (drawn.caption, drawn.spec)
    study.close()


def test_the_study_begun_last_is_shown_and_its_cells_alone(tmp_path: Path) -> None:
    first = Running(tmp_path, seeds=2)
    page, number_one = LiveStudy(tmp_path), LiveStudy(tmp_path, 1)
    assert shown(page) == shown(number_one)
    second = Running(tmp_path, seeds=2, norms="bn,ln,in")  # shares the cells of bn
    second.start(second.ids[0])
    second.epoch(second.ids[0], 1)
    assert shown(page) == shown(LiveStudy(tmp_path)) == shown(LiveStudy(tmp_path, 2))
    assert shown(number_one) == shown(LiveStudy(tmp_path, 1))
    assert [page.state()["cells"], number_one.state()["cells"]] == [6, 4]
    assert page.norms() == ["bn", "ln", "in"]
    first.close()
    second.close()


def test_lost_cells_are_left_out(tmp_path: Path) -> None:
    study = Running(tmp_path)
    page = LiveStudy(tmp_path)
    assert page.state()["cells"] == 4
    study.store._db.execute("DELETE FROM cells WHERE id = ?", (study.ids[0],))
    assert page.state()["cells"] == 3
    study.store.leave_out_lost_cells()
    assert shown(page) == shown(LiveStudy(tmp_path))
    study.close()


def test_another_store_in_the_same_place_is_read_anew(tmp_path: Path) -> None:
    study = Running(folder(tmp_path / "a"))
    cell = study.ids[0]
    study.start(cell)
    study.epoch(cell, 1)
    study.end(cell, "failed", "the same")
    page = LiveStudy(tmp_path / "a")
    shown(page)
    study.close()
    other = Running(folder(tmp_path / "b"))
    other.start(cell)
    other.epoch(cell, 2)
    other.end(cell, "failed", "the same")
    other.close()
    shutil.copy(tmp_path / "b" / FILE, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "a" / FILE)
    assert shown(page) == shown(LiveStudy(tmp_path / "a"))


def test_an_epoch_that_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, seen, read_rows = Running(tmp_path), Seen(), []
    cell = study.ids[0]
    study.start(cell)
    taken = Epochs.read
    monkeypatch.setattr(Epochs, "read", lambda records: (read_rows.append(len(records)), taken(records))[1])
    for epoch in (1, 2, 3):
        study.epoch(cell, epoch)
        with Store(tmp_path, readonly=True) as store:
            seen.look(store)
            before = seen.epochs(store, seen.cells[cell])
            assert seen.epochs(store, seen.cells[cell]) is before
            assert before.column("epoch") == [*range(1, epoch + 1)]
    assert read_rows == [1, 1, 1]
    study.close()


def test_a_judgement_of_many_cells_is_followed_by_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_AT_ONCE", 0)
    monkeypatch.setattr(live, "_REST", 1e9)
    study = Running(tmp_path)
    page, made = LiveStudy(tmp_path), []
    judge = live.judge_results
    monkeypatch.setattr(live, "judge_results", lambda results: (made.append(results), judge(results))[1])
    page.state()
    for cell in study.ids[:2]:
        study.start(cell)
        study.epoch(cell, 1)
        study.end(cell)
        page.state()
        if page._judging:
            page._judging.join()
    assert [len(results["cells"]) for results in made] == [4, 1]
    mark = page.mark()
    page._rested_at = 0.0  # as if it were over
    assert page.mark() != mark, "so that the page looks again"
    page.state()
    assert page._judging is not None
    page._judging.join()
    assert len(made[-1]["cells"]) == 2
    study.close()
