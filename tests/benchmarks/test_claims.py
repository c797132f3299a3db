"""The page about all members prints what the committed studies say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import claims
from normlab.norms import describe
from normlab.study.verdict import judge_results

PAGE = Path(__file__).parents[2] / "docs" / "members.md"
FOUND = {name: json.loads(path.read_text()) for name, path in claims.STUDIES.items()}


def test_the_tables_of_the_page() -> None:
    for table in claims.tables():
        assert table in PAGE.read_text(), f"docs/members.md should have\n{table}"


@pytest.mark.parametrize("study", FOUND)
def test_the_page_says_what_was_run(study: str) -> None:
    facts = FOUND[study]["environment"]
    for said in (facts["command"], facts["cpu"], f"torch {facts['torch']}", f"{facts['train_images']:,} images"):
        assert said in PAGE.read_text(), said


@pytest.mark.parametrize("study", FOUND)
def test_the_verdict_is_that_of_the_cells(study: str) -> None:
    assert judge_results(FOUND[study]).sentence == FOUND[study]["verdict"]["sentence"]


def test_what_was_trained_are_members() -> None:
    trained = {cell["norm"] for cell in FOUND["members"]["cells"]}
    assert len(trained) == 36
    assert all(describe(name).given is None for name in trained)


def test_a_claim_is_of_norms_that_were_trained() -> None:
    for claim in claims.CLAIMS:
        trained = {cell["norm"] for cell in FOUND[claim.study]["cells"]}
        assert {claim.norm, claim.other} <= trained, str(claim)


def test_records_of_the_last_epoch_are_judged_alike() -> None:
    results = FOUND["batch-2"]
    epochs = [{"epoch": 0, "val_accuracy": 1.0}, {"features": [1.0]}]
    full = [{**c, "epochs": [epochs[0], *({**e, **epochs[1]} for e in c["epochs"])]} for c in results["cells"]]
    assert claims.slim({**results, "cells": full}) == results
