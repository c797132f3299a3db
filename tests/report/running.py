"""A study that runs, made by hand: a store, locks held as a trainer would, and a server beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normlab.report.serve import application
from normlab.study.keeping.locks import CellLocks
from normlab.study.keeping.store import LOCKS, Store
from normlab.study.spec import make_spec


class Running:
    """A study in `directory` whose cells this object trains, so to say."""

    def __init__(self, directory: Path, **spec: Any) -> None:
        self.directory = directory
        self.store, self.locks = Store(directory), CellLocks(directory / LOCKS)
        made = make_spec({"norms": "bn,gn", "seeds": 2, "epochs": 5, **spec})
        facts = {"command": "normlab compare", "data": "digits", "class_names": ["a", "b"]}
        self.ids = self.store.begin_study(made.model_dump(mode="json"), facts, made.cells(1000), "0" * 32)
        self.attempts: dict[int, int] = {}

    def start(self, cell: int) -> None:
        assert self.locks.acquire(cell)
        self.attempts[cell] = self.store.begin_attempt(cell, {"cpu": "a processor"}) or 0

    def epoch(self, cell: int, epoch: int) -> None:
        accuracy = 0.5 + 0.05 * epoch
        record: dict[str, Any] = {"epoch": epoch, "seconds": 2.0, "images_per_second": 500.0}
        for split in ("train", "val"):
            record |= {f"{split}_loss": 1 / epoch, f"{split}_accuracy": accuracy}
            record |= {f"{split}_micro_f1": accuracy, f"{split}_macro_f1": accuracy}
        self.store.add_epoch(cell, record)

    def end(self, cell: int, status: str = "done", reason: str | None = None) -> None:
        test = {"loss": 0.5, "accuracy": 0.75, "micro_f1": 0.75, "macro_f1": 0.7}
        outcome = {"test": test, "parameters": 10} if status == "done" else None
        self.store.end_attempt(self.attempts.pop(cell), cell, status, reason=reason, outcome=outcome)
        self.locks.release(cell)

    def close(self) -> None:
        self.store.close()
        self.locks.close()


@contextmanager
def server(directory: Path, port: int = 0, token: str = "") -> Iterator[int]:
    """`normlab serve` in a thread of this process; answers the port."""
    import socket

    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    port = listener.getsockname()[1]
    app = application(directory, "127.0.0.1", port, token)
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.02)
        yield port
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()
