"""`normlab predict`, `normlab best` and `normlab norms`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

import normlab
from normlab import cli
from normlab.report.lab import Study
from tests.photographs import CLASSES


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_predictions_in_every_format(
    compared: Study, photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, other = photographs / "sky" / "0.png", photographs / "leaf"
    expected = compared.best.model().predict([one, other])
    code, out, _ = call(capsys, "predict", compared.path, one, other)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [[e.source, e.label] for e in expected]
    _, out, _ = call(capsys, "predict", compared.path, one, other, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in rows] == [e.label for e in expected]
    assert set(rows[0]) == {"image", "label", "confidence", *(f"p({name})" for name in CLASSES)}
    saved = compared.best.save(tmp_path / "a.safetensors")
    _, out, _ = call(capsys, "predict", saved, one, other, "--format", "json")
    assert [found["probabilities"] for found in json.loads(out)] == [e.probabilities for e in expected]
    _, out, _ = call(capsys, "predict", compared.path, one, "--norm", "gn", "--seed", 1, "--format", "json")
    (of_gn,) = compared.trained("gn", 1).model().predict(one)
    assert json.loads(out)[0]["probabilities"] == of_gn.probabilities


def test_best_is_written(compared: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, card = tmp_path / "best.safetensors", tmp_path / "card.md"
    code, out, _ = call(capsys, "best", compared.path, "--export", file, "--card", card)
    assert code == 0
    assert f"{compared.best.metrics['test_accuracy']:.4f}" in out
    assert normlab.load(file).facts == compared.best.facts
    assert card.read_text() == compared.best.card()


# what a file from elsewhere says reached the terminal as it was
def test_what_a_file_says_is_escaped(
    compared: Study, photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    best = compared.best
    bad = "\x1b[2J"
    facts = replace(best.facts, model=bad, class_names=(f"leaf{bad}", f"sky{bad}"), metrics={f"{bad}_accuracy": 1.0})
    _, out, _ = call(capsys, "best", replace(best, facts=facts).save(tmp_path / "a.safetensors"))
    assert "\x1b" not in out
    assert out.count(r"\x1b[2J") == 2
    facts = replace(facts, model=best.facts.model)
    file = replace(best, facts=facts).save(tmp_path / "b.safetensors")
    _, out, _ = call(capsys, "predict", file, photographs)
    assert "\x1b" not in out
    assert len({len(line) for line in out.splitlines()}) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["predict", "RUN", "nowhere.jpg"], 6, "nowhere.jpg"),
        (["predict", "RUN", "PICTURE", "--format", "xml"], 2, "xml"),
        (["predict", "RUN", "PICTURE", "--norm", "in"], 2, "'in'"),
        (["predict", "/no/where", "PICTURE"], 6, "/no/where"),
        (["best", "RUN", "--export", "a.pt"], 2, ".safetensors"),
        (["best", "RUN", "--norm", "gn", "--seed", "7"], 2, "seed 7"),
        (["norms", "batch"], 2, "batch"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], code: int, word: str, compared: Study, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_for = {"RUN": str(compared.path), "PICTURE": str(photographs / "sky" / "0.png")}
    found, _, err = call(capsys, *(stands_for.get(a, a) for a in arguments))
    assert (found, "Traceback" in err) == (code, False), err
    assert word in err


def test_norms_are_listed_with_their_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "norms")
    for name in normlab.norm_names():
        assert normlab.norms.describe(name).formula in out
    _, out, _ = call(capsys, "norms", "bin")
    for word in ("rho", "arXiv:1805.07925", "make_norm"):
        assert word in out
