from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import DataError, UsageError
from normlab.report import write
from normlab.report.records import from_results, read
from normlab.study.keeping.checkpoint import FINAL
from normlab.study.keeping.store import CHECKPOINTS
from tests.report.studies import HOSTILE, results


def written(directory: Path, **made: Any) -> str:
    (directory / "results.json").write_text(json.dumps(results(**made)))
    return write(directory).read_text(encoding="utf-8")


def payload(page: str, name: str = "payload") -> dict[str, Any]:
    packed = re.search(rf'id="{name}">([^<]+)<', page)
    assert packed
    unpacked: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return unpacked


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    written(directory, norms=["bn", "gn", "none"], batch_sizes=[8, 128], epochs=4)
    return directory


@pytest.fixture(scope="module")
def page(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


def test_one_file_without_any_origin(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert "default-src" in policy[1]
    assert "http" not in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert len(page.encode()) < 2_000_000


def test_scripts_are_the_ones_the_policy_names(page: str) -> None:
    inline = re.search(r"<script>(.*?)</script>", page, re.S)
    assert inline
    digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
    assert f"sha256-{digest}" in page.replace("&#39;", "'")


def test_table_has_every_norm_with_interval(page: str) -> None:
    for norm in ("bn", "gn", "none"):
        assert re.search(
            rf"</svg>{norm}</th><td>batch \d+</td><td>3</td><td>\d\d\.\d \[\d\d\.\d, \d\d\.\d\]</td>", page
        )


def test_every_chart_has_words_data_and_specification(page: str) -> None:
    keys = re.findall(r'data-chart="([^"]+)" data-label="[^"]{20,}"', page)
    assert len(keys) == len(set(keys)) == page.count('class="chart"') == page.count("<summary>Data</summary>")
    assert set(keys) == set(payload(page)["figures"])


def test_raw_data_is_carried_whole_with_the_verdict_of_the_page(directory: Path, page: str) -> None:
    carried = payload(page, "raw")
    assert carried.pop("verdict")["sentence"] == read(directory).judged.sentence
    assert carried == results(norms=["bn", "gn", "none"], batch_sizes=[8, 128], epochs=4)


# the page of records without networks had lines that load one
def test_only_networks_that_are_there_are_offered(tmp_path: Path) -> None:
    few = {"norms": ["bn", "gn"], "seeds": 2, "epochs": 2}
    assert "best.model()" not in written(tmp_path, **few)
    weights = tmp_path / CHECKPOINTS / "key" / FINAL
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert "best.model()" in written(tmp_path, **few)


def test_reading_changes_nothing_and_writing_repeats_itself(directory: Path, page: str) -> None:
    assert write(directory).read_text(encoding="utf-8") == page
    assert sorted(path.name for path in directory.iterdir()) == ["report.html", "results.json"]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = written(tmp_path, norms=["bn", HOSTILE], class_names=["cat", HOSTILE], epochs=2)
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert page.count("<script") == page.count("</script>") == 4


def test_single_seed_shows_no_interval(tmp_path: Path) -> None:
    page = written(tmp_path, norms=["bn", "gn"], seeds=1, epochs=2)
    body = re.search(r"<tbody>(.*?)</tbody>", page, re.S)
    assert body
    assert "±" not in body[1]


def test_nan_is_null_as_in_the_study(tmp_path: Path) -> None:
    document = results(norms=["bn", "none"], seeds=2, epochs=6)
    document["cells"][3]["epochs"][5]["train_loss"] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(document))
    page = write(tmp_path).read_text(encoding="utf-8")
    assert payload(page, "raw")["cells"][3]["epochs"][5]["train_loss"] is None


def test_long_studies_are_thinned(tmp_path: Path) -> None:
    page = written(tmp_path, norms=["bn", "gn", "none"], seeds=8, epochs=400)
    assert len(page.encode()) < 1_300_000  # leaves room for pictures
    kept = [epoch["epoch"] for epoch in payload(page, "raw")["cells"][0]["epochs"]]
    assert kept[-1] == 400
    assert len(kept) < 400
    assert "without distributions" in page


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", 'results must be {"cells"'),
        ('{"cells": [{"norm": 3}]}', "cell 0 of the results: norm must be str, got 3"),
        ('{"cells": [{"norm": "bn", "seed": 0, "status": "done", "epochs": [1]}]}', "epochs must be a list"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(complaint)):
        write(tmp_path)


def test_directory_without_study_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="normlab compare"):
        read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds no study"):
        read(tmp_path)


def test_settings_are_told_apart_by_what_varies() -> None:
    study = from_results(results(batch_sizes=[8, 128]))
    assert [study.label(setting) for setting in study.settings] == ["batch 8", "batch 128"]
