from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from normlab.errors import DataError
from normlab.study.training.metrics import classification_metrics, confusion_matrix, per_class_f1

samples = st.integers(2, 7).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60)
    )
)


@given(samples)
def test_agrees_with_scikit_learn(sample: tuple[int, list[tuple[int, int]]]) -> None:
    num_classes, pairs = sample
    labels, predictions = np.array(pairs).T
    ours = classification_metrics(labels, predictions, num_classes)
    occurring = np.union1d(labels, predictions)

    assert ours.accuracy == pytest.approx(oracle.accuracy_score(labels, predictions))
    assert ours.micro_f1 == pytest.approx(oracle.f1_score(labels, predictions, average="micro"))
    assert ours.macro_f1 == pytest.approx(oracle.f1_score(labels, predictions, average="macro"))
    np.testing.assert_allclose(
        ours.per_class_f1[occurring], oracle.f1_score(labels, predictions, average=None, labels=occurring)
    )
    np.testing.assert_array_equal(
        ours.confusion, oracle.confusion_matrix(labels, predictions, labels=np.arange(num_classes))
    )


@given(samples)
def test_micro_f1_is_accuracy(sample: tuple[int, list[tuple[int, int]]]) -> None:
    num_classes, pairs = sample
    ours = classification_metrics(*np.array(pairs).T, num_classes)
    assert ours.micro_f1 == pytest.approx(ours.accuracy, abs=1e-15)


def test_class_that_never_occurs_has_no_f1() -> None:
    scores = per_class_f1(confusion_matrix([0, 0], [0, 1], 3))
    np.testing.assert_allclose(scores, [2 / 3, 0.0, np.nan])


@pytest.mark.parametrize(
    ("labels", "predictions", "complaint"),
    [
        ([0, 3], [0, 1], r"labels must lie in \[0, 3\), got 0 to 3"),
        ([0, 1], [-1, 1], r"predictions must lie in \[0, 3\)"),
        ([0, 1], [1], "equally many, got 2 and 1"),
        ([[0], [1]], [0, 1], r"labels must be integers of shape \(N,\)"),
        ([0.5, 1.0], [0, 1], "labels must be integers"),
        ([], [], "empty"),
    ],
)
def test_bad_input_is_named(labels: list[int], predictions: list[int], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        classification_metrics(labels, predictions, 3)
