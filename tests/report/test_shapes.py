"""The report's other shapes, large studies, and charts against their schema."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from jsonschema.exceptions import ValidationError

from normlab.errors import UsageError
from normlab.report import sections, theme, write, write_side_by_side
from normlab.report.evidence import contenders
from normlab.report.explained import explained_sections
from normlab.report.figures import curves, inside
from normlab.report.figures import results as of_results
from normlab.report.figures.parts import MOST_NORMS
from normlab.report.records import EXPLAINED, from_results
from tests.report.studies import HOSTILE, explained, results


def study_in(directory: Path, **made: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results(**made)))
    return directory


def test_charts_are_valid_vega_lite() -> None:
    study = from_results(results(norms=["bn", "gn"], batch_sizes=[8, 128], epochs=3))
    built = sections.build(study)
    drawn = explained_sections(explained(norms=["bn", "gn"]), theme.styles(study.norms))
    figures = [figure for section in [*built, *drawn] for figure in section.figures if section.key != "confusion"]
    charts = {"layer": alt.LayerChart, "hconcat": alt.HConcatChart, "vconcat": alt.VConcatChart, "mark": alt.Chart}
    for figure in figures:
        (kind,) = charts.keys() & figure.spec.keys()
        charts[kind].validate(figure.spec)  # raises where the schema does not allow what it says
    with pytest.raises(ValidationError):
        alt.LayerChart.validate({**figures[0].spec, "layer": [{"mark": "scribble"}]})
    assert len({figure.key for figure in figures}) == len(figures) > 12
    assert {section.key for section in built} == {"result", "settings", "curves", "cost", "features", "confusion"}


def test_markdown_has_verdict_warnings_and_tables(tmp_path: Path) -> None:
    text = write(study_in(tmp_path, norms=["bn", HOSTILE, "a|b"], seeds=1, epochs=2), "md").read_text()
    assert text.startswith("# ")
    assert "one seed has no interval" in text
    assert "> **Warning:** Every norm was trained with a single seed" in text
    assert re.search(r"^\| bn \| 1 \| \d\d\.\d \|", text, re.M)
    assert "a\\|b" in text
    assert "<script>" not in text


def test_svg_charts_stand_alone(tmp_path: Path) -> None:
    folder = write(study_in(tmp_path, norms=["bn", HOSTILE], epochs=2), "svg")
    files = sorted(folder.glob("*.svg"))
    assert any(path.name.startswith("ranking") for path in files)
    for path in files:
        text = path.read_text()
        assert text.startswith("<svg")
        assert "var(--" not in text
        assert "<script>alert" not in text
        assert not re.search(r'(?:href|src)="http', text)


def test_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pdf' is not known; expected one of: html, md, svg"):
        write(tmp_path, "pdf")


def test_beyond_a_dozen_norms_the_rest_is_one_band() -> None:
    norms = [f"norm-{i:02}" for i in range(18)]
    chosen = contenders(from_results(results(norms=norms, seeds=2, epochs=3)))
    figure = curves.curves(chosen, "val_accuracy", "Validation accuracy", "k", theme.styles(norms), share=True)
    drawn = {row["norm"] for row in figure.spec["datasets"]["bands"]}
    assert drawn == set(list(chosen)[:MOST_NORMS])
    assert len(figure.spec["datasets"]["crowd"]) == 3
    assert "6 more as a grey band" in figure.caption


def test_no_more_norms_are_drawn_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three in place of a dozen: a chart of each takes its time."""
    for module in (sections, curves, inside, of_results):
        monkeypatch.setattr(module, "MOST_NORMS", 3)
    built, few = (sections.build(from_results(results(norms=list("abcde")[:n], seeds=2, epochs=3))) for n in (5, 3))
    assert len(built[0].tables[0].rows) == 3
    assert built[0].more is not None
    assert built[0].more[0] == "The other 2 norms"
    assert [len(s.figures) for s in built] == [len(s.figures) for s in few]


def test_hues_and_dashes_tell_every_norm_apart() -> None:
    norms = [
        "bn",
        "in",
        "bin",
        "ln",
        "gn",
        "none",
        "torch-bn",
        "gn:groups=8",
        "gn:groups=2",
        *[f"n{i}" for i in range(20)],
    ]
    drawn = theme.styles(norms)
    assert len({(style.color, tuple(style.dash)) for style in drawn.values()}) == len(norms)
    assert drawn["gn"].color == drawn["gn:groups=8"].color
    assert theme.styles(["gn", "bn"])["bn"] == drawn["bn"]


def test_a_full_report_stays_under_two_megabytes(tmp_path: Path) -> None:
    study_in(tmp_path, epochs=30)
    found = explained(images=4)
    (tmp_path / EXPLAINED).write_text(json.dumps(found))
    page = write(tmp_path).read_text(encoding="utf-8")
    assert page.count("<img ") >= 120
    assert page.count('class="chart"') >= 12
    assert len(page.encode()) < 2_000_000


def test_explanations_are_shown_escaped_and_fetch_nothing(tmp_path: Path) -> None:
    study_in(tmp_path, norms=["bn", "gn"], epochs=2)
    found = explained(norms=["bn", "gn"], class_names=["cat", HOSTILE, "dog"], images=1)
    found["galleries"][0]["images"][0]["picture"] = "http://example.org/x.png"
    (tmp_path / EXPLAINED).write_text(json.dumps(found))
    page = write(tmp_path).read_text(encoding="utf-8")
    for title in ("What they look at", "What is mistaken for what", "Why a batch size hurts"):
        assert title in page
    assert HOSTILE not in page
    assert "example.org" not in page


def test_two_studies_side_by_side(tmp_path: Path) -> None:
    first = study_in(tmp_path / "first", norms=["bn", "gn", "ln"], epochs=2)
    document = results(norms=["bn", "gn", "in"], epochs=2)
    document["environment"]["command"] = "normlab compare cifar10 --model resnet20"
    for cell in document["cells"]:
        if cell["norm"] == "gn":
            cell["test"]["accuracy"] += 0.05
    second = tmp_path / "second"
    second.mkdir()
    (second / "results.json").write_text(json.dumps(document))
    target = write_side_by_side(first, second)
    page = target.read_text(encoding="utf-8")
    assert target == first / "beside-second.html"
    assert "In second, gn is higher than in first; the rest is not measurably different." in page
    assert "--model resnet20" in page
    assert re.search(r"gn</th><td>[\d.]+ ± [\d.]+</td><td>[\d.]+ ± [\d.]+</td><td>\+\d\.\d \[\+", page)
    assert page.count('class="chart"') >= 12


# the page compared accuracies, whatever the studies were judged by
def test_two_studies_side_by_side_by_another_metric(tmp_path: Path) -> None:
    document = results(norms=["bn", "gn"], epochs=1)
    other = copy.deepcopy(document)
    for cell in other["cells"]:
        cell["test"]["macro_f1"] -= 0.2 * (cell["norm"] == "gn")
    paths = []
    for name, found in (("first", document), ("second", other)):
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        (paths[-1] / "results.json").write_text(json.dumps(found))
    assert "No norm is measurably different" in write_side_by_side(*paths).read_text(encoding="utf-8")
    page = write_side_by_side(*paths, metric="macro-f1").read_text(encoding="utf-8")
    assert "In second, gn is lower than in first" in page
    assert "Test macro-F1 in percent" in page
    other["environment"]["metric"] = "macro-f1"
    (paths[1] / "results.json").write_text(json.dumps(other))
    page = write_side_by_side(*paths).read_text(encoding="utf-8")
    assert "One was judged by test accuracy, the other by test macro-F1." in page
    with pytest.raises(UsageError, match="--metric 'f2' is not known"):
        write_side_by_side(*paths, metric="f2")


def test_two_studies_of_other_images_are_warned_of(tmp_path: Path) -> None:
    first = study_in(tmp_path / "first", norms=["bn"], seeds=1, epochs=1)
    document = results(norms=["bn"], seeds=1, epochs=1)
    document["environment"]["data_hash"] = "0" * 32
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "results.json").write_text(json.dumps(document))
    page = write_side_by_side(first, tmp_path / "second").read_text(encoding="utf-8")
    assert "used different images" in page
    assert "nothing can be called different" in page
