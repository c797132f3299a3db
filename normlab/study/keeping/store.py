"""What a study knows, in one SQLite file: cells, their epochs, every attempt, and where each ran.

Writers take turns (write-ahead log, BEGIN IMMEDIATE, a busy timeout); readers never wait and never make anybody
wait. Who works on a cell is not written here but held as a kernel lock (`normlab.study.keeping.locks`). Records are
JSON text, in which NaN and infinity survive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normlab.errors import DataError, NormlabError, UsageError
from normlab.study.axes import SCHEMA as AXES_VERSION
from normlab.study.axes import Cell

FILE = "study.db"
LOCKS = "study.lock"
CHECKPOINTS = "checkpoints"  # the folder of the weights, one within for each cell
BUSY_SECONDS = 60.0
FINISHED = ("done", "diverged")

# what turns the schema of the version before into that of a version; where none stands, only the records' content grew
MIGRATIONS = {
    1: """
    CREATE TABLE cells (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        config TEXT NOT NULL,
        status TEXT NOT NULL DEFAULT 'pending',
        reason TEXT,
        traceback TEXT,
        outcome TEXT,
        attempts INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX cells_by_status ON cells (status);
    CREATE TABLE epochs (
        cell INTEGER NOT NULL REFERENCES cells (id) ON DELETE CASCADE,
        epoch INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (cell, epoch)
    ) WITHOUT ROWID;
    CREATE TABLE environments (hash TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        cell INTEGER NOT NULL REFERENCES cells (id) ON DELETE CASCADE,
        environment TEXT REFERENCES environments (hash),
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        ended TEXT,
        status TEXT,
        reason TEXT
    );
    CREATE INDEX attempts_by_cell ON attempts (cell);
    CREATE TABLE studies (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        started TEXT NOT NULL,
        spec TEXT NOT NULL,
        facts TEXT NOT NULL,
        cells TEXT NOT NULL
    );
    """,
}
# a new axis is a new version as well: older programs do not know what to make of its cells
VERSION = max(*MIGRATIONS, AXES_VERSION)


class StoreBusy(NormlabError):
    """The store cannot be used now, or not by this version (exit code 4)."""

    exit_code = 4


class NothingSelected(NormlabError):
    """There is not a single cell to look at (exit code 5)."""

    exit_code = 5


@dataclass(frozen=True)
class StoredCell:
    """A row of the table of cells."""

    id: int
    key: str
    config: dict[str, Any]
    status: str
    reason: str | None
    traceback: str | None
    outcome: dict[str, Any]
    attempts: int

    @property
    def cell(self) -> Cell:
        try:
            return Cell(**self.config)
        except TypeError:
            known = {field.name for field in fields(Cell)}
            differ = ", ".join(sorted(self.config.keys() ^ known)) or "their values"
            raise StoreBusy(
                f"cell {self.key} was written by another version of normlab, whose cells differ in: {differ}; "
                "update normlab, or choose another --out"
            ) from None


@dataclass(frozen=True)
class StoredStudy:
    """A study as it was entered last: its number among those `of` the directory, and the ids of its cells."""

    number: int
    of: int
    started: str
    spec: dict[str, Any]
    facts: dict[str, Any]
    cells: list[int]


class Store:
    """The records of the studies of one directory.

    A study is its spec and its images; entered again, it is the same one. `study` returns the one that this object
    began, or the last that anybody began, so that a process reports its own whatever others begin meanwhile.

    `Store(directory)` opens the file for writing, making it if need be and bringing an older one up to date;
    `Store(directory, readonly=True)` only reads. Raises StoreBusy for a file of a newer version, and DataError
    for one that is no store.
    """

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
        self.path = directory / FILE
        if readonly and not self.path.is_file():
            raise DataError(f"{directory} holds no study ({FILE} is not there); expected the --out of a comparison")
        self._own: int | None = None  # the row of the study that this object began last
        with self._errors():
            mode = "ro" if readonly else "rwc"
            self._db = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._version()
            if version > VERSION:
                self._db.close()
                raise StoreBusy(
                    f"{self.path} was written by a newer normlab (schema {version}, this one reads "
                    f"up to {VERSION}); update normlab, or choose another --out"
                )
            if readonly and version < max(MIGRATIONS):
                self._db.close()
                raise DataError(
                    f"{self.path} holds no study yet, or an older one; `normlab compare` brings it up to date"
                )
            if not readonly:
                self._db.execute("PRAGMA journal_mode = WAL")
                # A power cut may lose the last commits, never the file; checkpoints bring the epochs back.
                self._db.execute("PRAGMA synchronous = NORMAL")
                if version < VERSION:
                    self._migrate()

    def begin_study(self, spec: dict[str, Any], facts: dict[str, Any], cells: list[Cell], data_hash: str) -> list[int]:
        """Enter a study and those of its cells that are new; answers the ids of its cells, in order."""
        keys = [cell.key(data_hash) for cell in cells]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO cells (key, config) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
                [(key, json.dumps(asdict(cell))) for key, cell in zip(keys, cells, strict=True)],
            )
            ids = [self._db.execute("SELECT id FROM cells WHERE key = ?", (key,)).fetchone()[0] for key in keys]
            own = self._db.execute(
                "INSERT INTO studies (started, spec, facts, cells) VALUES (?, ?, ?, ?)",
                (_now(), json.dumps(spec), json.dumps(facts), json.dumps(ids)),
            ).lastrowid
        self._own = own
        return ids

    def study(self, number: int | None = None) -> StoredStudy | None:
        """The study that this object began last, else the one begun last by anybody; None if there is none.

        With `number` the study that `studies` lists under it. Raises UsageError if there is no such number.
        """
        rows = self._study_rows()
        if number is None:
            row = self._own or max((of_study[-1] for of_study in rows), default=None)
            return None if row is None else self._read_study(rows, row)
        if not 1 <= number <= len(rows):
            raise UsageError(f"--study {number}: {self.path.parent} holds {len(rows)}, numbered from 1")
        return self._read_study(rows, rows[number - 1][-1])

    def studies(self) -> list[StoredStudy]:
        """Every study of the directory, each as it was entered last, in the order in which they were first begun."""
        rows = self._study_rows()
        return [self._read_study(rows, of_study[-1]) for of_study in rows]

    def _study_rows(self) -> list[list[int]]:
        """The rows of each study, in order."""
        with self._errors():
            rows = self._db.execute("SELECT id, spec, facts FROM studies ORDER BY id").fetchall()
        found: dict[tuple[str, str], list[int]] = {}
        for row, spec, facts in rows:
            same = json.dumps(json.loads(spec), sort_keys=True), str(json.loads(facts).get("data_hash"))
            found.setdefault(same, []).append(row)
        return list(found.values())

    def _read_study(self, rows: list[list[int]], row: int) -> StoredStudy:
        query = "SELECT started, spec, facts, cells FROM studies WHERE id = ?"
        with self._errors():
            started, *texts = self._db.execute(query, (row,)).fetchone()
        number = next(number for number, of_study in enumerate(rows, start=1) if row in of_study)
        return StoredStudy(number, len(rows), started, *map(json.loads, texts))

    def cells(self, ids: Iterable[int] | None = None) -> list[StoredCell]:
        """The cells with these ids, in their order; without ids, all."""
        query = "SELECT id, key, config, status, reason, traceback, outcome, attempts FROM cells"
        wanted = None if ids is None else list(ids)
        with self._errors():
            if wanted is not None and len(wanted) == 1:
                rows = self._db.execute(query + " WHERE id = ?", wanted).fetchall()
            else:
                rows = self._db.execute(query + " ORDER BY id").fetchall()
        found = {
            id: StoredCell(
                id, key, json.loads(config), status, reason, traceback, json.loads(outcome or "{}"), attempts
            )
            for id, key, config, status, reason, traceback, outcome, attempts in rows
        }
        return list(found.values()) if wanted is None else [found[i] for i in wanted]

    def epochs(self, cell: int) -> list[dict[str, Any]]:
        """The records of a cell's epochs, in order."""
        with self._errors():
            rows = self._db.execute("SELECT record FROM epochs WHERE cell = ? ORDER BY epoch", (cell,)).fetchall()
        return [json.loads(row[0]) for row in rows]

    def failures(self, cell: int) -> int:
        """How often a cell failed."""
        with self._errors():
            query = "SELECT count(*) FROM attempts WHERE cell = ? AND status = 'failed'"
            return self._db.execute(query, (cell,)).fetchone()[0]

    def begin_attempt(self, cell: int, environment: dict[str, Any]) -> int | None:
        """Enter that a cell is being trained, unless it is finished; answers the attempt's id.

        Only the holder of the cell's lock may call this.
        """
        facts = json.dumps(environment, sort_keys=True)
        name = hashlib.sha256(facts.encode()).hexdigest()[:16]
        with self._transaction():
            status = self._db.execute("SELECT status FROM cells WHERE id = ?", (cell,)).fetchone()[0]
            if status in FINISHED:
                return None
            self._db.execute("INSERT INTO environments VALUES (?, ?) ON CONFLICT (hash) DO NOTHING", (name, facts))
            self._db.execute(
                "UPDATE cells SET status = 'running', reason = NULL, traceback = NULL, attempts = attempts + 1 "
                "WHERE id = ?",
                (cell,),
            )
            # an attempt of this cell that never ended can only have died, since its lock was free
            self._db.execute("UPDATE attempts SET status = 'interrupted' WHERE cell = ? AND status IS NULL", (cell,))
            return self._db.execute(
                "INSERT INTO attempts (cell, environment, host, pid, started) VALUES (?, ?, ?, ?, ?)",
                (cell, name, socket.gethostname(), os.getpid(), _now()),
            ).lastrowid

    def add_epoch(self, cell: int, record: dict[str, Any]) -> bool:
        """Enter the record of an epoch; False if it is there already (a training that replays its past)."""
        with self._transaction():
            added = self._db.execute(
                "INSERT INTO epochs VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (cell, record["epoch"], json.dumps(record)),
            )
            return added.rowcount == 1

    def end_attempt(
        self,
        attempt: int,
        cell: int,
        status: str,
        *,
        reason: str | None = None,
        traceback: str | None = None,
        outcome: dict[str, Any] | None = None,
    ) -> None:
        """Enter how an attempt ended, which is the state of its cell from now on."""
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET status = ?, reason = ?, traceback = ?, outcome = ? WHERE id = ?",
                (status, reason, traceback, json.dumps(outcome or {}), cell),
            )
            self._db.execute(
                "UPDATE attempts SET ended = ?, status = ?, reason = ? WHERE id = ?",
                (_now(), status, reason, attempt),
            )

    def forget(self, cells: Iterable[int]) -> None:
        """Take cells back to the beginning: their records go, their attempts stay on the books."""
        with self._transaction():
            for cell in cells:
                self._db.execute("DELETE FROM epochs WHERE cell = ?", (cell,))
                self._db.execute(
                    "UPDATE cells SET status = 'pending', reason = NULL, traceback = NULL, outcome = NULL WHERE id = ?",
                    (cell,),
                )

    def attempts(self, cell: int) -> list[dict[str, Any]]:
        """Every attempt at a cell, with the environment it ran in."""
        with self._errors():
            rows = self._db.execute(
                "SELECT started, ended, status, reason, host, pid, facts FROM attempts "
                "LEFT JOIN environments ON hash = environment WHERE cell = ? ORDER BY id",
                (cell,),
            ).fetchall()
        names = ("started", "ended", "status", "reason", "host", "pid")
        return [{**dict(zip(names, row, strict=False)), "environment": json.loads(row[6] or "{}")} for row in rows]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # another process may have done it while this one waited
            for version in range(self._version() + 1, VERSION + 1):
                for statement in filter(str.strip, MIGRATIONS.get(version, "").split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite says into what a user can act on."""
        try:
            yield
        except sqlite3.OperationalError as e:
            text = str(e)
            if "locked" in text or "busy" in text:
                raise StoreBusy(
                    f"{self.path} was kept busy by another process for {BUSY_SECONDS:.0f} s; try again later"
                ) from e
            if "full" in text or "I/O" in text or "unable to open" in text or "readonly" in text:
                raise DataError(f"{self.path}: {text}; free some space or choose another --out") from e
            raise
        except sqlite3.DatabaseError as e:
            raise DataError(f"{self.path} is not a normlab store ({e}); move it away or choose another --out") from e


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
