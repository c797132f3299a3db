"""Records as files: results.json for programs, results.csv for spreadsheets, Parquet for data frames."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normlab.errors import files
from normlab.study.axes import AXES
from normlab.study.keeping.store import NothingSelected, Store
from normlab.study.verdict import Verdict, edge_warnings, judge_results

JSON, CSV = "results.json", "results.csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet computes
METRICS = ("loss", "accuracy", "micro_f1", "macro_f1", "balanced_accuracy")
COLUMNS = (
    *(axis.column for axis in AXES),
    "status", "reason", "parameters", "backend", "epoch",
    *(f"{split}_{metric}" for split in ("train", "val") for metric in METRICS),
    "learning_rate", "seconds", "images_per_second",
    *(f"test_{metric}" for metric in METRICS),
    "data", "data_hash", "normlab", "torch", "device", "cpu", "threads", "command",
)  # fmt: skip


def collect(store: Store, number: int | None = None) -> dict[str, Any]:
    """Everything about a study (`Store.study`): its cells with their epochs, environment, and verdict."""
    results = gathered(store, number)
    return with_verdict(results, judge_results(results))


def gathered(store: Store, number: int | None = None) -> dict[str, Any]:
    """The same without the verdict, for callers that judge it themselves."""
    study = store.study(number)
    if study is None:
        raise NothingSelected(f"{store.path} holds no study yet; start one with `normlab compare`")
    cells = []
    for stored in store.cells(study.cells):
        cells.append(
            {
                **stored.cell.columns(),
                "key": stored.key,
                "status": stored.status,
                "reason": stored.reason,
                "parameters": stored.outcome.get("parameters"),
                "backend": stored.outcome.get("backend"),
                "peak_memory_bytes": stored.outcome.get("peak_memory_bytes"),
                "attempts": stored.attempts,
                "epochs": store.epochs(stored.id),
                "test": stored.outcome.get("test"),
            }
        )
    environment = {**study.facts, **_last_environment(store, study.cells)}
    backends = sorted({c["backend"] for c in cells if c["backend"]})
    environment["backend"] = ", ".join(backends)
    tuning = environment.pop("tuning", [])
    return {
        "study": study.number,
        "studies": study.of,
        "cells": cells,
        "environment": environment,
        "spec": study.spec,
        "tuning": tuning,
    }


def with_verdict(results: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The same document with this verdict in it."""
    said = verdict.as_dict()
    return {**results, "verdict": {**said, "warnings": said["warnings"] + edge_warnings(results.get("tuning") or ())}}


def _last_environment(store: Store, ids: list[int]) -> dict[str, Any]:
    """The environment of the cell that was trained last."""
    trained = [stored for stored in store.cells(ids) if stored.attempts]
    if not trained:
        return {}
    last = trained[-1]
    attempts = store.attempts(last.id)  # none, of a store that was saved after damage
    return {**(attempts[-1]["environment"] if attempts else {}), **last.outcome.get("environment", {})}


def write_results(store: Store, directory: Path) -> dict[str, Any]:
    """Write results.json and results.csv of the store's study, and return what was written."""
    results = collect(store)
    write_json(results, directory / JSON)
    write_csv(results, directory / CSV)
    return results


def write_json(results: dict[str, Any], path: Path) -> None:
    """Strict JSON: numbers that are not finite become null."""
    files.write_text(path, files.to_json(results, indent=1))


def write_csv(results: dict[str, Any], path: Path) -> None:
    """One row per cell and epoch, columns as in `COLUMNS`; numbers that are not finite are nan, inf, -inf.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    with files.whole(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: _escape_formula(value) for name, value in row.items()} for row in rows(results))


def _escape_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _spell_out(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def write_parquet(results: dict[str, Any], path: Path) -> None:
    """The same rows and columns as the CSV, typed; bytes of a name that are not UTF-8 are spelled out, as there."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{c: _spell_out(row.get(c)) for c in COLUMNS} for row in rows(results)])
    with files.whole(path) as part, part.open("wb") as file:
        parquet.write_table(table, file)


WRITERS = {"csv": write_csv, "json": write_json, "parquet": write_parquet}


def rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One flat row per cell and epoch; a cell without an epoch has one row."""
    environment = {name: results["environment"].get(name) for name in COLUMNS[-8:]}
    for cell in results["cells"]:
        shared = {name: value for name, value in cell.items() if name in COLUMNS}
        tested = {f"test_{name}": value for name, value in (cell["test"] or {}).items()}
        for record in cell["epochs"] or [{}]:
            measured = {name: value for name, value in record.items() if name in COLUMNS}
            yield {**environment, **shared, **measured, **tested}
