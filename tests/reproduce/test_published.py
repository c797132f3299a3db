"""The tables of the reports are as printed, and what cannot be in them is found."""

from __future__ import annotations

from normlab.reproduce.published import PHOTOGRAPHS, PHOTOGRAPHS_EPOCHS, VARIANTS, Row, contradictions


def test_the_contradictions_of_the_photographs_are_found() -> None:
    found = contradictions(PHOTOGRAPHS, PHOTOGRAPHS_EPOCHS)
    assert "six norms: bin and bn agree in all 8 figures." in found
    assert "baseline: printed after epoch 50 of trainings of 30 epochs." in found
    assert any(said.startswith("batch sizes, gn 128, validation: the micro-F1 score 0.9744") for said in found)
    assert any(said.startswith("gn 32, train: six norms has 0.6752") for said in found)
    assert sum("micro-F1" in said for said in found) == 6
    assert len(found) == 9


def test_the_seven_variants_do_not_contradict_themselves() -> None:
    assert contradictions(VARIANTS) == []
    assert len(VARIANTS) == 21


def test_sound_tables_pass() -> None:
    rows = [
        Row("t", name, "train", 0.1, accuracy, accuracy, 0.8, epoch=3) for name, accuracy in (("a", 0.8), ("b", 0.9))
    ]
    assert contradictions(rows, 3) == []
    assert contradictions(rows, 2) == ["t: printed after epoch 3 of trainings of 2 epochs."]
