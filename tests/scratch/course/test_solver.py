# ruff: noqa: NPY002  (the assignments draw from the global generator)
"""The solver as the assignments' notebooks see it."""

from __future__ import annotations

import numpy as np
import pytest

from normlab.scratch.course.classifiers.fc_net import TwoLayerNet
from normlab.scratch.course.solver import Solver


def data() -> dict[str, np.ndarray]:
    draw = np.random.RandomState(0)
    return {
        "X_train": draw.randn(20, 12),
        "y_train": draw.randint(0, 3, 20),
        "X_val": draw.randn(10, 12),
        "y_val": draw.randint(0, 3, 10),
    }


# it printed other lines, and drew the samples whose accuracy is measured first before the first batch
def test_lines_histories_and_draws_are_the_assignments_(capsys: pytest.CaptureFixture[str]) -> None:
    np.random.seed(0)
    model = TwoLayerNet(input_dim=12, hidden_dim=5, num_classes=3)
    start = {name: value.copy() for name, value in model.params.items()}
    np.random.seed(231)
    solver = Solver(model, data(), num_epochs=2, batch_size=10, print_every=2, num_train_samples=5)
    solver.train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(")")[0] for line in lines] == [
        "(Iteration 1 / 4", "(Epoch 0 / 2", "(Epoch 1 / 2", "(Iteration 3 / 4", "(Epoch 2 / 2",
    ]  # fmt: skip
    assert lines[0].endswith(f"loss: {solver.loss_history[0]:f}")
    assert lines[1].endswith(f"train acc: {solver.train_acc_history[0]:f}; val_acc: {solver.val_acc_history[0]:f}")
    assert len(solver.loss_history) == 4
    assert len(solver.val_acc_history) == 3

    np.random.seed(231)
    model.params = start
    first = np.random.choice(20, 10)
    assert solver.loss_history[0] == model.loss(data()["X_train"][first], data()["y_train"][first])[0]


def test_an_argument_that_there_is_not_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"Unrecognized arguments 'learning_rate'; expected some of update_rule"):
        Solver(TwoLayerNet(12, 5, 3), data(), learning_rate=1e-3)
