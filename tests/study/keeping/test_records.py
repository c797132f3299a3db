"""What results.csv holds, opened by a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from normlab.study.keeping.records import WRITERS, write_csv


# a folder named =cmd|... was a formula in results.csv
@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|'/C calc'!A0"])
def test_text_is_never_a_formula(name: str, tmp_path: Path) -> None:
    cell = {"norm": name, "reason": name, "epochs": [{"train_loss": -1.5}], "test": None}
    results = {"cells": [cell], "environment": {"data": name, "command": name, "threads": -1}}
    write_csv(results, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {row[column] for column in ("norm", "reason", "data", "command")} == {f"'{name}"}
    assert (row["train_loss"], row["threads"]) == ("-1.5", "-1"), "numbers stay numbers"


# A network in a file whose name is not UTF-8 ended the export to Parquet in a traceback.
@pytest.mark.parametrize("form", WRITERS)
def test_a_name_that_is_no_utf8_is_spelled_out_in_every_format(form: str, tmp_path: Path) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    cell = {"norm": "bn", "model": "n\udcff.py:net", "reason": "\udcff", "epochs": [{"epoch": 1}], "test": None}
    path = tmp_path / f"export.{form}"
    WRITERS[form]({"cells": [cell], "environment": {"data": "d\udcff", "command": "normlab \udcff"}}, path)
    assert rb"n\udcff.py:net" in path.read_bytes()
