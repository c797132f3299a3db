"""Whether a study's files are what was written, and how to save the rest of a damaged store.

SQLite checks pages and indexes; the digest of every row says whether its content is what was written, the digest in
every checkpoint whether the weights are. What is whole of a damaged store goes into a new one. A cell that has lost
an epoch is no longer done there: its checkpoint brings the epochs back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from normlab.errors import DataError
from normlab.study.keeping.checkpoint import Damaged, read_state
from normlab.study.keeping.store import (
    CHECKPOINTS,
    FILE,
    FINISHED,
    SEALED,
    SINCE_SEALED,
    Store,
    connect,
    digest_of,
    open_for_reading,
)

SAVED = "saved"  # the folder of the store that is made of what is whole
_KEYS = {"cells": "id", "epochs": "cell, epoch", "attempts": "id", "studies": "id", "environments": "hash"}
_COLUMNS = {**{table: (*columns, "digest") for table, columns in SEALED.items()}, "environments": ("hash", "facts")}


def verify(directory: Path) -> Iterator[str]:
    """Check every page, row and checkpoint of a study; a line for what is whole, and one for each damage.

    Raises DataError at the end if anything is damaged; what is whole of the store was saved before.
    """
    path = directory / FILE
    if not path.is_file():
        raise DataError(f"{directory} holds no study ({FILE} is not there); expected the --out of a comparison")
    found = list(_damage_of_store(path))
    yield from found
    damaged = bool(found)
    if not damaged:
        yield f"{path}: whole"
    else:
        yield from _save(path, directory / SAVED)
    checkpoints = sorted(directory.glob(f"{CHECKPOINTS}/*/*.safetensors"))
    broken = 0
    for checkpoint in checkpoints:
        try:
            read_state(checkpoint)
        except Damaged as error:
            broken += 1
            yield f"{checkpoint}: damaged ({error})"
    if checkpoints:
        yield f"{directory / CHECKPOINTS}: {len(checkpoints) - broken} of {len(checkpoints)} checkpoints are whole"
    if damaged or broken:
        raise DataError(f"{directory} is damaged: see above")


def _damage_of_store(path: Path) -> Iterator[str]:
    """What is wrong with a store's file."""
    try:
        with closing(open_for_reading(path)) as db:
            for (line,) in db.execute("PRAGMA integrity_check").fetchall():
                if line != "ok":
                    yield f"{path}: {' '.join(line.split())}"
            if not _sealed(db):
                return
            for table, columns in _COLUMNS.items():
                key = _KEYS[table]
                for *row, whole in db.execute(f"SELECT {key}, {_is_whole_sql(table)} FROM {table}"):
                    if not whole:
                        names = ", ".join(f"{name} {value}" for name, value in zip(key.split(", "), row, strict=True))
                        yield f"{path}: {table}: {names}: not what was written ({', '.join(columns)})"
    except (sqlite3.Error, UnicodeDecodeError) as error:
        yield f"{path}: {error}"


def _sealed(db: sqlite3.Connection) -> bool:
    """Whether rows have digests, which those of an older store have not."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version >= SINCE_SEALED


def _is_whole_sql(table: str) -> str:
    """Whether a row is what was written, in SQL; of an environment, whether its name is that of its facts."""
    return "hash IS name_of(CAST(facts AS BLOB))" if table == "environments" else f"digest IS {digest_of(table)}"


def _save(path: Path, folder: Path) -> Iterator[str]:
    """Write what is whole of a store into a new one."""
    target = folder / FILE
    try:
        folder.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
    except OSError as error:
        yield f"nothing was saved: {folder} cannot be written ({error.strerror}); copy the directory to where you may"
        return
    Store(folder).close()  # an empty one
    kept = {}
    with closing(open_for_reading(path)) as old, closing(connect(target, "mode=rw")) as new:
        new.execute("BEGIN")
        for table, columns in _COLUMNS.items():
            names = ", ".join(columns)
            marks = ", ".join("?" * len(columns))
            rows = list(_rows(old, table, names))
            kept[table] = len(rows)
            new.executemany(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", rows)
        for table in ("epochs", "attempts"):
            new.execute(f"DELETE FROM {table} WHERE cell NOT IN (SELECT id FROM cells)")
        new.execute("UPDATE attempts SET environment = NULL WHERE environment NOT IN (SELECT hash FROM environments)")
        new.execute(f"UPDATE attempts SET digest = {digest_of('attempts')}")
        new.execute("COMMIT")
    reopened = _reopen_incomplete(folder)
    said = ", ".join(f"{count} {table}" for table, count in kept.items() if table in ("cells", "epochs", "studies"))
    again = f"; {reopened} cells have lost epochs and go on from their checkpoints" if reopened else ""
    yield f"saved: {target}: {said}{again}; put it in the place of {path}, and run the same command again"


def _rows(db: sqlite3.Connection, table: str, names: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table that are whole, from its beginning and from its end up to what cannot be read."""
    whole = _is_whole_sql(table)
    if table in SEALED and not _sealed(db):
        whole, names = "1", names.replace("digest", digest_of(table))
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{key} {direction}" for key in _KEYS[table].split(", "))
        with suppress(sqlite3.Error, UnicodeDecodeError):
            cursor = db.execute(f"SELECT {whole}, {names} FROM {table} NOT INDEXED ORDER BY {order}")
            yield from (row[1:] for row in cursor if row[0])
            return


def _reopen_incomplete(folder: Path) -> int:
    """Take cells that have lost epochs back to the beginning of an attempt; returns how many."""
    reopened = 0
    with Store(folder) as store:
        for stored in store.cells():
            epochs = [record["epoch"] for record in store.epochs(stored.id)]
            whole = epochs == list(range(1, len(epochs) + 1))
            if not whole or (stored.status == "done" and not stored.cell.patience and len(epochs) < stored.cell.epochs):
                store.forget([stored.id])
                reopened += stored.status in FINISHED
        store.leave_out_lost_cells()
    return reopened
