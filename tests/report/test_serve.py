from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the live page needs the serve extra: pip install 'normlab[serve]'")
pytest.importorskip("starlette", reason="the live page needs the serve extra: pip install 'normlab[serve]'")

from normlab.errors import UsageError
from normlab.report import live
from normlab.report.figures import curves
from normlab.report.live import CURVES, PAGE, LiveStudy
from normlab.report.serve import application, is_local
from normlab.study.keeping.store import FILE, Store
from tests.report.running import Running, server


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    study = Running(tmp_path)
    yield study
    study.close()


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, headers={"Host": f"127.0.0.1:{port}"} | headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    connection.close()
    return found


def test_state_follows_the_study(running: Running) -> None:
    study = LiveStudy(running.directory)
    state = study.state()
    assert state["counts"] == {"pending": 4}
    assert state["seconds_left"] is None
    assert "Nobody is training; 4 cells are left" in state["stale"]
    first, second, *_ = running.ids
    running.start(first)
    running.epoch(first, 1)
    running.start(second)
    state = study.state()
    assert state["counts"] == {"running": 2, "pending": 2}
    assert (state["epochs"], state["planned"], state["stale"]) == (1, 20, "")
    assert state["seconds_left"] == pytest.approx(19 * 2.0 / 2)
    assert state["age"] < 5
    for epoch in range(2, 6):
        running.epoch(first, epoch)
    running.end(first)
    running.end(second, "failed", "out of memory at batch size 32")
    state = study.state()
    assert state["counts"] == {"done": 1, "failed": 1, "pending": 2}
    failed, *_, done = state["rows"]
    assert failed[-1] == "out of memory at batch size 32"
    assert done[:4] + done[5:] == ["done", "bn", "0", "5/5", ""]
    assert "batch 32, optimizer sgd, lr 0.1" in done[4]
    assert [row[0] for row in study.state(status="failed")["rows"]] == ["failed"]


def test_a_dead_run_is_told_from_a_living_one(running: Running) -> None:
    running.start(running.ids[0])
    running.epoch(running.ids[0], 1)
    assert LiveStudy(running.directory).state()["counts"]["running"] == 1
    running.locks.release(running.ids[0])  # what the kernel does when the process is gone
    state = LiveStudy(running.directory).state()
    assert state["counts"]["interrupted"] == 1
    assert "Nobody is training" in state["stale"]


def test_curves_are_those_of_the_report_and_grow(running: Running) -> None:
    study, cell = LiveStudy(running.directory), running.ids[0]
    running.start(cell)
    running.epoch(cell, 1)
    before = {figure["key"]: figure for figure in study.figures()}
    assert list(before) == ["train_loss", "val_loss", "train_accuracy", "val_accuracy"]
    mark = study.mark()
    running.epoch(cell, 2)
    assert study.mark() != mark
    after = {figure["key"]: figure for figure in study.figures()}
    assert [row["epoch"] for row in before["val_accuracy"]["spec"]["datasets"]["bands"]] == [1]
    assert [row["epoch"] for row in after["val_accuracy"]["spec"]["datasets"]["bands"]] == [1, 2]


def test_a_thousand_cells_are_paged(tmp_path: Path) -> None:
    study = Running(tmp_path, seeds=500, epochs=2)
    try:
        for cell in study.ids[:10]:
            study.start(cell)
            study.epoch(cell, 1)
        page = LiveStudy(tmp_path)
        state = page.state(page=3)
        assert state["cells"] == 1000
        assert (state["page"], state["pages"], len(state["rows"])) == (3, 1000 // PAGE, PAGE)
        assert len(json.dumps(state)) < 20_000
        assert page.state(page=999)["page"] == 1000 // PAGE - 1
    finally:
        study.close()


# With 5,000 cells a page took a second, and its curves three to seven: everything was read at every look.
def test_a_look_reads_only_what_has_changed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    study, (first, second, *_) = LiveStudy(running.directory), running.ids
    running.start(first)
    running.epoch(first, 1)
    study.state()
    drawn = study.figures()
    read: list[list[int]] = []
    cells = Store.cells

    def counted(store: Store, ids: Any = None) -> Any:
        read.append(list(ids))
        return cells(store, ids)

    monkeypatch.setattr(Store, "cells", counted)
    assert study.figures() is drawn
    running.start(second)
    assert study.state()["counts"] == {"running": 2, "pending": 2}
    assert read == [[], [second]]


# Four drawings by Altair at every epoch took two thirds of a second, whatever their data.
def test_a_new_epoch_is_drawn_into_the_drawing_there_is(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    study, (first, second, *_) = LiveStudy(running.directory), running.ids
    for cell in (first, second):
        running.start(cell)
    for epoch in (1, 2):
        running.epoch(first, epoch)
    running.epoch(second, 1)
    before = study.figures()
    monkeypatch.setattr(curves, "finish", None)  # nothing can be drawn anew
    running.epoch(second, 2)
    after = study.figures()
    assert [len(f["spec"]["datasets"]["bands"]) for f in (before[0], after[0])] == [3, 4]
    for figure, (column, _, share) in zip(after, CURVES, strict=True):
        (low, high), *others = {
            tuple(layer["encoding"]["y"]["scale"]["domain"]) for layer in figure["spec"]["layer"][:-1]
        }
        values = [row["mean"] for row in figure["spec"]["datasets"]["bands"]]
        assert (others, 0 <= low <= min(values), max(values) <= high) == ([], True, True), (column, share)


def test_the_verdict_of_many_cells_comes_after_the_page(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_AT_ONCE", 0)
    study = LiveStudy(running.directory)
    before = study.state()["verdict"]
    mark = study.mark()
    for cell in running.ids:
        running.start(cell)
        running.epoch(cell, 1)
        running.end(cell)
    mark = study.mark()
    assert study.state()["verdict"] == before
    assert study._judging is not None
    study._judging.join()
    assert study.mark() != mark, "so that the page looks again"
    assert study.state()["verdict"] != before


def test_the_server_answers_its_own_page_only(running: Running) -> None:
    with server(running.directory) as port:
        status, body, headers = get(port, "/")
        assert status == 200
        assert b"Reading the study" in body
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert get(port, "/state", Host=f"localhost:{port}")[0] == 200
        assert get(port, "/state", Host="evil.example")[0] == 403
        assert get(port, "/state", Host=f"127.0.0.1.evil.example:{port}")[0] == 403
        assert get(port, "/state", Origin="http://evil.example")[0] == 403
        assert get(port, "/state", Origin=f"http://127.0.0.1:{port}")[0] == 200
        assert get(port, "/state", method="POST")[0] == 405
        assert get(port, "/state", method="DELETE")[0] == 405
        assert get(port, "/state?page=1&status=%3Cscript%3E")[0] == 200
        # int("--5"): 500
        for wrong in ("/state?page=nonsense", "/state?page=--5", "/state?page=%D9%A3", "/figures?setting=1e3"):
            assert get(port, wrong)[0] == 400, wrong
        assert get(port, "/state?page=-5")[0] == 200
        assert get(port, "/../study.db")[0] == 404


def test_a_token_is_asked_for_and_kept_in_a_cookie(running: Running) -> None:
    with server(running.directory, token="open sesame, open") as port:
        # a visitor was sent to another server, with the token
        for path in ("//evil.example/", "///evil.example", "/%5Cevil.example/", "//state"):
            status, _, headers = get(port, f"{path}?token=open%20sesame,%20open")
            assert (status, headers["location"]) == (303, "/"), path
        assert get(port, "/state?token=open%20sesame,%20open")[2]["location"] == "/state"
        assert get(port, "/")[0] == 401
        assert get(port, "/state?token=wrong")[0] == 401
        status, _, headers = get(port, "/?token=open%20sesame,%20open")
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly" in headers["set-cookie"]
        assert "SameSite=strict" in headers["set-cookie"]
        assert get(port, "/state", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200
        assert get(port, "/state", Cookie="normlab_token=wrong")[0] == 401


def test_other_addresses_need_a_token(running: Running) -> None:
    with pytest.raises(UsageError, match="has 1 characters; expected 16 or more"):
        application(running.directory, "127.0.0.1", 80, "a")
    with pytest.raises(UsageError, match="needs a --token"):
        application(running.directory, "0.0.0.0", 80)
    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_commit_is_the_next_event(running: Running) -> None:
    running.start(running.ids[0])
    with server(running.directory) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("GET", "/events")
        stream = connection.getresponse()
        assert stream.getheader("content-type", "").startswith("text/event-stream")
        assert stream.readline() == b"event: change\n"
        stream.readline(), stream.readline()
        running.epoch(running.ids[0], 1)
        assert next(line for line in stream if line.startswith(b"event")) == b"event: change\n"
        connection.close()


# A store that was damaged or deleted under the page was "Internal Server Error", and a traceback in the terminal.
def test_a_store_that_cannot_be_read_any_more_is_told(running: Running) -> None:
    with server(running.directory) as port:
        assert get(port, "/state")[0] == 200
        running.close()
        store = running.directory / FILE
        data = bytearray(store.read_bytes())
        data[5000:8000] = b"x" * 3000
        store.write_bytes(data)
        for words in (b"is damaged", b"holds no study"):
            for path in ("/state", "/figures", "/"):
                status, told, _ = get(port, path)
                assert (status, words in told) == (503, True), told
            store.unlink(missing_ok=True)
            for left in running.directory.glob(f"{FILE}-*"):
                left.unlink()


def test_directory_without_study_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study"):
        LiveStudy(tmp_path)


def test_reading_leaves_the_store_as_it_was(running: Running) -> None:
    before: Any = running.store.cells()
    study = LiveStudy(running.directory)
    study.state()
    study.figures()
    assert running.store.cells() == before
