"""What results.csv holds, opened by a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from normlab.study.keeping.records import write_csv


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
