"""What a study records, in one SQLite file: cells, their epochs, every attempt, and where each ran.

Writers take turns (write-ahead log, BEGIN IMMEDIATE, a busy timeout); readers never wait and never make anybody
wait. Who works on a cell is not written here but held as a kernel lock (`normlab.study.keeping.locks`). Records are
JSON text, in which NaN and infinity survive.
"""

from __future__ import annotations

import contextlib
import functools
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
from normlab.study.keeping.mounts import network_mount

FILE = "study.db"
LOCKS = "study.lock"
CHECKPOINTS = "checkpoints"  # the folder of the weights, one within for each cell
BUSY_SECONDS = 60.0
_FEW = 100  # cells that are looked up one by one
FINISHED = ("done", "diverged")
_CHECKED: set[tuple[int, int, int, int]] = set()  # files as they were when their structure was found whole

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
SEALED = {  # the columns that the digest of a row covers
    "cells": ("id", "key", "config", "status", "reason", "traceback", "outcome", "attempts"),
    "epochs": ("cell", "epoch", "record"),
    "attempts": ("id", "cell", "environment", "host", "pid", "started", "ended", "status", "reason"),
    "studies": ("id", "started", "spec", "facts", "cells"),
}
SINCE_SEALED = 4
MIGRATIONS[SINCE_SEALED] = "".join(f"ALTER TABLE {table} ADD COLUMN digest TEXT;" for table in SEALED)
# a new axis is a new version as well: older programs cannot read its cells
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

    @functools.cached_property
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


def digest_of(table: str) -> str:
    """The digest of a row as it is now, in SQL."""
    return f"digest_of({', '.join(f'CAST({column} AS BLOB)' for column in SEALED[table])})"


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open a store's file with the options of an SQLite URI; `digest_of` is a function there."""
    uri = f"{path.resolve().as_uri()}?{options}"
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    db.text_factory = lambda text: text.decode(errors="surrogateescape")  # a damaged one is for its digest to notice
    db.create_function("digest_of", -1, _digest, deterministic=True)
    db.create_function("name_of", 1, lambda facts: _name_of(facts.decode(errors="surrogateescape")), deterministic=True)
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a store that may lie on a medium which cannot be written, where SQLite makes no index of its log.

    Raises DataError where a log is left on such a medium: the latest records stand in it.
    """
    db = None
    try:
        db = connect(path, "mode=ro")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if db is not None:
            db.close()
        log = path.with_name(f"{path.name}-wal")
        if not any(words in str(error) for words in ("unable to open", "readonly", "read-only")):
            raise
        if log.is_file() and log.stat().st_size:
            raise DataError(
                f"{path} was not closed, and {path.parent} cannot be written to finish it; copy the directory to where "
                "you may write, and read it there"
            ) from error
        return connect(path, "mode=ro&immutable=1")
    return db


def _name_of(facts: str) -> str:
    """The name of an environment."""
    return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:16]


def _digest(*values: bytes | None) -> str:
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        found.update(b"-;" if value is None else b"%d;%b" % (len(value), value))
    return found.hexdigest()


class Store:
    """The records of the studies of one directory.

    A study is its spec and its images; entered again, it is the same one. `study` returns the one that this object
    began, or the last that anybody began, so that a process reports its own whatever others begin meanwhile.

    `Store(directory)` opens the file for writing, making it if need be and bringing an older one up to date;
    `Store(directory, readonly=True)` only reads. Raises StoreBusy for a file of a newer version, and DataError
    for one that is no store, or is damaged: the file's pages are checked when it is opened, every row's digest when it
    is read.
    """

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
        self.path = directory / FILE
        if readonly and not self.path.is_file():
            raise DataError(f"{directory} holds no study ({FILE} is not there); expected the --out of a comparison")
        self._own: int | None = None  # the row of the study that this object began last
        with self._errors():
            self._db = open_for_reading(self.path) if readonly else connect(self.path, "mode=rwc")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._check_pages()
            version = self._version()
            self._sealed = version >= SINCE_SEALED
            if version > VERSION:
                self._db.close()
                raise StoreBusy(
                    f"{self.path} was written by a newer normlab (schema {version}, this one reads "
                    f"up to {VERSION}); update normlab, or choose another --out"
                )
            if readonly and version < min(MIGRATIONS):
                self._db.close()
                raise DataError(
                    f"{self.path} holds no study yet, or an older one; `normlab compare` brings it up to date"
                )
            if not readonly:
                # its log lies in memory that machines do not share
                self._db.execute(f"PRAGMA journal_mode = {'DELETE' if network_mount(directory) else 'WAL'}")
                # A power cut may lose the last commits, never the file; checkpoints bring the epochs back.
                self._db.execute("PRAGMA synchronous = NORMAL")
                if version < VERSION:
                    self._migrate()
                self._sealed = True

    def begin_study(self, spec: dict[str, Any], facts: dict[str, Any], cells: list[Cell], data_hash: str) -> list[int]:
        """Enter a study and those of its cells that are new; returns the ids of its cells, in order."""
        keys = [cell.key(data_hash) for cell in cells]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO cells (key, config) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
                [(key, json.dumps(asdict(cell))) for key, cell in zip(keys, cells, strict=True)],
            )
            self._seal("cells", "digest IS NULL")
            ids = [self._db.execute("SELECT id FROM cells WHERE key = ?", (key,)).fetchone()[0] for key in keys]
            own = self._db.execute(
                "INSERT INTO studies (started, spec, facts, cells) VALUES (?, ?, ?, ?)",
                (_now(), json.dumps(spec), json.dumps(facts), json.dumps(ids)),
            ).lastrowid
            self._seal("studies", "id = ?", own)
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
        rows = self._rows("studies", "id, spec, facts", "ORDER BY id")
        found: dict[tuple[str, str], list[int]] = {}
        for row, spec, facts in rows:
            same = json.dumps(json.loads(spec), sort_keys=True), str(json.loads(facts).get("data_hash"))
            found.setdefault(same, []).append(row)
        return list(found.values())

    def _read_study(self, rows: list[list[int]], row: int) -> StoredStudy:
        ((started, *texts),) = self._rows("studies", "started, spec, facts, cells", "WHERE id = ?", row)
        number = next(number for number, of_study in enumerate(rows, start=1) if row in of_study)
        return StoredStudy(number, len(rows), started, *map(json.loads, texts))

    def cells(self, ids: Iterable[int] | None = None) -> list[StoredCell]:
        """The cells with these ids, in their order; without ids, all."""
        columns = "id, key, config, status, reason, traceback, outcome, attempts"
        wanted = None if ids is None else list(ids)
        if wanted is not None and len(wanted) <= _FEW:
            rows = self._rows("cells", columns, f"WHERE id IN ({', '.join('?' * len(wanted))})", *wanted)
        else:
            rows = self._rows("cells", columns, "ORDER BY id")
        found = {
            id: StoredCell(
                id, key, json.loads(config), status, reason, traceback, json.loads(outcome or "{}"), attempts
            )
            for id, key, config, status, reason, traceback, outcome, attempts in rows
        }
        return list(found.values()) if wanted is None else [found[i] for i in wanted]

    def marks(self) -> dict[int, str] | None:
        """Something of every cell, by id, that changes with its row; None in a store that has nothing such."""
        return self._digests("id", "cells")

    def marks_of_studies(self) -> dict[int, str] | None:
        """The same of every study that was entered."""
        return self._digests("id", "studies")

    def marks_of_epochs(self, cell: int) -> dict[int, str] | None:
        """The same of every epoch of a cell, in order."""
        return self._digests("epoch", "epochs WHERE cell = ? ORDER BY epoch", cell)

    def _digests(self, key: str, of: str, *values: Any) -> dict[int, str] | None:
        if not self._sealed:
            return None
        with self._errors():
            return dict(self._db.execute(f"SELECT {key}, digest FROM {of}", values).fetchall())

    def epochs(self, cell: int, after: int = 0) -> list[dict[str, Any]]:
        """The records of a cell's epochs, in order; only those after the epoch of this number."""
        rows = self._rows("epochs", "record", "WHERE cell = ? AND epoch > ? ORDER BY epoch", cell, after)
        return [json.loads(record) for (record,) in rows]

    def count_epochs(self, cell: int) -> int:
        """How many epochs of a cell are recorded."""
        with self._errors():
            return self._db.execute("SELECT count(*) FROM epochs WHERE cell = ?", (cell,)).fetchone()[0]

    def failures(self, cell: int) -> int:
        """How often a cell failed."""
        with self._errors():
            query = "SELECT count(*) FROM attempts WHERE cell = ? AND status = 'failed'"
            return self._db.execute(query, (cell,)).fetchone()[0]

    def begin_attempt(self, cell: int, environment: dict[str, Any]) -> int | None:
        """Enter that a cell is being trained, unless it is finished; returns the attempt's id.

        Only the holder of the cell's lock may call this.
        """
        facts = json.dumps(environment, sort_keys=True)
        name = _name_of(facts)
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
            begun = self._db.execute(
                "INSERT INTO attempts (cell, environment, host, pid, started) VALUES (?, ?, ?, ?, ?)",
                (cell, name, socket.gethostname(), os.getpid(), _now()),
            ).lastrowid
            self._seal("cells", "id = ?", cell)
            self._seal("attempts", "cell = ?", cell)
        return begun

    def add_epoch(self, cell: int, record: dict[str, Any]) -> bool:
        """Enter the record of an epoch; False if it is there already (a training that replays its past)."""
        with self._transaction():
            added = self._db.execute(
                "INSERT INTO epochs (cell, epoch, record) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (cell, record["epoch"], json.dumps(record)),
            )
            self._seal("epochs", "cell = ? AND epoch = ?", cell, record["epoch"])
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
            self._seal("cells", "id = ?", cell)
            self._seal("attempts", "id = ?", attempt)

    def forget(self, cells: Iterable[int]) -> None:
        """Take cells back to the beginning: their records go, their attempts stay on the books."""
        with self._transaction():
            for cell in cells:
                self._db.execute("DELETE FROM epochs WHERE cell = ?", (cell,))
                self._db.execute(
                    "UPDATE cells SET status = 'pending', reason = NULL, traceback = NULL, outcome = NULL WHERE id = ?",
                    (cell,),
                )
                self._seal("cells", "id = ?", cell)

    def leave_out_lost_cells(self) -> None:
        """Take cells that are not there out of the studies, after a damage; they are entered anew when they are run."""
        there = {stored.id for stored in self.cells()}
        with self._transaction():
            for row, cells in self._db.execute("SELECT id, cells FROM studies").fetchall():
                left = json.dumps([cell for cell in json.loads(cells) if cell in there])
                self._db.execute("UPDATE studies SET cells = ? WHERE id = ?", (left, row))
            self._seal("studies", "1")

    def attempts(self, cell: int) -> list[dict[str, Any]]:
        """Every attempt at a cell, with the environment it ran in."""
        names = ("started", "ended", "status", "reason", "host", "pid")
        rows = self._rows("attempts", f"{', '.join(names)}, environment", "WHERE cell = ? ORDER BY id", cell)
        return [{**dict(zip(names, row, strict=False)), "environment": self._environment(row[-1])} for row in rows]

    def _environment(self, name: str | None) -> dict[str, Any]:
        """The facts of an environment, which is named by their hash."""
        if name is None:
            return {}
        with self._errors():
            row = self._db.execute("SELECT facts FROM environments WHERE hash = ?", (name,)).fetchone()
        if row is None or _name_of(row[0]) != name:
            raise DataError(self._describe_damage("the environment of an attempt is not what was written"))
        found: dict[str, Any] = json.loads(row[0])
        return found

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows(self, table: str, columns: str, rest: str, *values: Any) -> list[Any]:
        """Rows of a table. Raises DataError for one that is not what was written."""
        whole = f"digest IS {digest_of(table)}" if self._sealed else "1"
        with self._errors():
            rows = self._db.execute(f"SELECT {whole}, {columns} FROM {table} {rest}", values).fetchall()
        if not all(row[0] for row in rows):
            raise DataError(self._describe_damage(f"a row of the table of {table} is not what was written"))
        return [row[1:] for row in rows]

    def _seal(self, table: str, where: str, *values: Any) -> None:
        """Write the digests of rows that have changed; part of the transaction that changed them."""
        self._db.execute(f"UPDATE {table} SET digest = {digest_of(table)} WHERE {where}", values)

    def _check_pages(self) -> None:
        """Raise DataError if the file's structure is damaged; what this process has checked is not checked again."""
        facts = self.path.stat()
        mark = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
        if mark in _CHECKED:
            return
        ((found,), *_) = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise DataError(self._describe_damage(" ".join(found.split())))
        _CHECKED.add(mark)

    def _describe_loss(self) -> str:
        return f"{self.path} was deleted or moved away while it was in use"

    def _describe_damage(self, what: str) -> str:
        directory = self.path.parent
        return f"{self.path} is damaged: {what}; `normlab status {directory} --verify` says what, and saves the rest"

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # another process may have done it while this one waited
            for version in range(self._version() + 1, VERSION + 1):
                for statement in filter(str.strip, MIGRATIONS.get(version, "").split(";")):
                    self._db.execute(statement)
                if version == SINCE_SEALED:
                    for table in SEALED:
                        self._seal(table, "1")
            self._db.execute(f"PRAGMA user_version = {VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if not self.path.exists():  # SQLite would go on writing to a file that has no name any more
            raise DataError(self._describe_loss())
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
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite says into what a user can act on."""
        try:
            yield
        except sqlite3.OperationalError as e:
            text = str(e)
            if not self.path.exists():
                raise DataError(self._describe_loss()) from e
            if "locked" in text or "busy" in text:
                raise StoreBusy(
                    f"{self.path} was kept busy by another process for {BUSY_SECONDS:.0f} s; try again later"
                ) from e
            if "full" in text or "I/O" in text or "unable to open" in text or "readonly" in text:
                raise DataError(f"{self.path}: {text}; free some space or choose another --out") from e
            raise DataError(self._describe_damage(text)) from e
        except sqlite3.DatabaseError as e:
            if "malformed" in str(e):
                raise DataError(self._describe_damage(str(e))) from e
            raise DataError(f"{self.path} is not a normlab store ({e}); move it away or choose another --out") from e
        except UnicodeDecodeError as e:  # SQLite quotes what is damaged
            raise DataError(self._describe_damage("its text is not UTF-8")) from e


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
