"""Specs: what expands to which cells, what makes two cells the same, and what is told about mistakes."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from normlab.errors import UsageError
from normlab.study import axes
from normlab.study.axes import AXES, Axis, Cell
from normlab.study.spec import StudySpec, make_spec
from tests.study.conftest import make_cell


def test_the_cells_are_the_product_of_the_axes() -> None:
    spec = make_spec({"norms": "bn,gn", "batch_sizes": "8,32", "lrs": [0.1, 0.01], "seeds": 3})
    cells = spec.cells(train_images=100)
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 3
    assert [c.seed for c in cells] == sorted(c.seed for c in cells), "whole rounds of norms, seed by seed"


def test_repeated_values_do_not_repeat_cells() -> None:
    assert len(make_spec({"norms": "bn,bn", "seeds": [1, 1]}).cells(10)) == 1


def test_batch_size_and_augmentation_default_by_the_data() -> None:
    assert make_spec({"norms": "bn"}).cells(40_000)[0].batch_size == 128
    assert make_spec({"norms": "bn"}).cells(1_000)[0].batch_size == 32
    assert make_spec({"data": "digits"}).cells(10)[0].augment == "crop"
    assert make_spec({"data": "photos"}).cells(10)[0].augment == "crop,flip"


def test_one_number_of_seeds_counts_them_and_a_list_names_them() -> None:
    assert make_spec({"seeds": "3"}).seeds == make_spec({"seeds": 3}).seeds == (0, 1, 2)
    assert make_spec({"seeds": "3,5"}).seeds == (3, 5)


def test_augmentations_have_one_spelling() -> None:
    assert make_spec({"augment": "flip,crop"}).augment == make_spec({"augment": "crop+flip"}).augment == ("crop,flip",)
    assert make_spec({"augment": ["none", "crop"]}).augment == ("none", "crop")


@given(st.permutations(["norms", "batch_sizes", "lrs", "seeds"]), st.permutations(["bn", "in", "gn"]))
def test_the_order_of_settings_and_lists_never_matters(order: list[str], norms: list[str]) -> None:
    values = {"norms": norms, "batch_sizes": [32, 8], "lrs": [0.1], "seeds": [1, 0]}
    expected = make_spec({"seeds": 2, "lrs": "0.1", "norms": "bn,in,gn", "batch_sizes": "8,32"}).cells(10)
    found = make_spec({name: values[name] for name in order}).cells(10)
    assert {c.key("d") for c in found} == {c.key("d") for c in expected}


@pytest.mark.parametrize("name", [f.name for f in fields(Cell)])
def test_every_field_of_a_cell_is_part_of_its_key(name: str) -> None:
    cell = make_cell()
    value = getattr(cell, name)
    other = {"precision": "bf16"}.get(name, value + 1 if isinstance(value, int | float) else value + "x")
    other = replace(cell, **{name: other})
    assert other.key("d") != cell.key("d")


def test_other_data_and_other_training_code_are_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cell()
    before = cell.key("d")
    assert cell.key("e") != before
    monkeypatch.setitem(axes.TRAINING_CODE, "float32", 10_000)
    assert cell.key("d") != before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nroms": "bn"}, ["nroms", "norms"]),
        ({"batch_sizes": "8,many"}, ["batch_sizes", "'many'"]),
        ({"batch_sizes": 0}, ["batch_sizes", "greater than 0"]),
        ({"optimizers": "sgd,lion"}, ["optimizers", "'lion'", "rmsprop"]),
        ({"schedule": "sometimes"}, ["schedule", "'sometimes'", "cosine"]),
        ({"augment": "rotate"}, ["augment", "'rotate'", "flip"]),
        ({"lrs": "nan"}, ["lrs", "finite"]),
        ({"norms": ""}, ["norms", "at least 1"]),
        ({"dropout": "1.5"}, ["dropout", "less than 1"]),
        ({"epochs": "-3", "momentum": 2}, ["epochs", "momentum"]),
    ],
)
def test_one_message_names_every_mistake(values: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_spec(values)
    for word in words:
        assert re.search(re.escape(word), str(caught.value)), (word, str(caught.value))


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_an_axis_is_a_setting_a_flag_a_column_and_part_of_a_label(axis: Axis) -> None:
    from inspect import signature

    from normlab.cli.study import compare, plan
    from normlab.report.records import setting_of
    from normlab.study.keeping.records import COLUMNS

    assert axis.setting in StudySpec.model_fields
    assert axis.column in COLUMNS
    for command in (compare, plan):
        option = signature(command).parameters[axis.setting].annotation.__metadata__[0]
        assert (option.default, *option.param_decls) == axis.flags
    shown = setting_of(make_cell().columns())
    assert any(part.startswith(f"{axis.label} ") for part in shown) == axis.groups


def test_labels_are_smoothed_as_the_spec_says() -> None:
    cells = make_spec({"norms": "bn", "label_smoothing": "0,0.1"}).cells(10)
    assert [cell.label_smoothing for cell in cells] == [0.0, 0.1]
    assert cells[0].key("d") != cells[1].key("d")
    assert [("label smoothing" in cell.label()) for cell in cells] == [False, True]
    with pytest.raises(UsageError, match=r"label_smoothing.*less than 1"):
        make_spec({"label_smoothing": 1})


@given(st.floats(allow_nan=True), st.booleans())
def test_numbers_are_read_alike_from_text_and_files(value: float, as_text: bool) -> None:
    given = repr(value) if as_text else value
    if math.isfinite(value) and value > 0:
        assert make_spec({"lrs": given}).lrs == (value,)
    else:
        with pytest.raises(UsageError, match=r"lrs.*greater than 0"):
            make_spec({"lrs": given})


_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
_ANYTHING = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


# `schedule: null` and `norms: {}` in a settings file ended in tracebacks.
@settings(max_examples=100, deadline=None)
@example(name="schedule", value=None)
@example(name="norms", value=[{}])
@given(name=st.sampled_from(sorted(set(StudySpec.model_fields) - {"data"})), value=_ANYTHING)
def test_a_setting_of_any_kind_is_taken_or_refused_in_words(name: str, value: Any) -> None:
    with contextlib.suppress(UsageError):
        make_spec({name: value}).cells(100)
