# ruff: noqa: NPY002 - the teaching code of this field draws from the global state
"""The training loop: it learns, remembers its best, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normlab.errors import DataError, UsageError
from normlab.scratch.nets import FullyConnectedNet
from normlab.scratch.solver import Solver


def _data(seed: int = 0) -> dict[str, np.ndarray]:
    """Two classes that a small network tells apart, but for one label in ten."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(120, 6)).astype(np.float32)
    y = ((X[:, 0] + X[:, 1] > 0) ^ (rng.random(120) < 0.1)).astype(np.int64)
    return {"X_train": X[:80], "y_train": y[:80], "X_val": X[80:], "y_val": y[80:]}


def _solver(epochs: int, *, seed: int = 0, keep: float = 0.8, **settings: Any) -> Solver:
    rng = np.random.RandomState(seed)
    net = FullyConnectedNet([16, 8], 6, 2, keep, "batchnorm", weight_scale=0.3, rng=rng)
    defaults = {"update_rule": "adam", "optim_config": {"learning_rate": 1e-2}, "lr_decay": 0.95, "batch_size": 16}
    return Solver(net, _data(), num_epochs=epochs, verbose=False, rng=rng, **{**defaults, **settings})


def test_it_learns_and_keeps_histories() -> None:
    solver = _solver(20, keep=1)
    solver.train()
    assert len(solver.loss_history) == 20 * 5
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 21
    assert solver.train_acc_history[-1] > 0.85
    assert solver.loss_history[-1] < solver.loss_history[0]
    assert solver.best_val_acc == max(solver.val_acc_history)


def test_the_model_ends_with_its_best_parameters_and_statistics() -> None:
    solver = _solver(20)
    solver.train()
    assert solver.val_acc_history[-1] < solver.best_val_acc, "else this test shows nothing: change the seed"
    for name, value in solver.best_params.items():
        assert np.array_equal(solver.model.params[name], value)
    assert solver.check_accuracy(solver.X_val, solver.y_val) == solver.best_val_acc


@pytest.mark.parametrize("through_train", [True, False])
def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path, through_train: bool) -> None:
    whole = _solver(6)
    whole.train()
    first = _solver(3, checkpoint_name=tmp_path / "run")
    first.train()
    path = tmp_path / "run_epoch_3.npz"
    if through_train:
        path = tmp_path / "saved.npz"
        first.save(path)  # after training, when the model holds its best parameters
    second = _solver(6, seed=99)
    second.resume(path)
    second.train()
    assert second.loss_history == whole.loss_history
    assert second.val_acc_history == whole.val_acc_history
    for name, value in whole.best_params.items():
        assert np.array_equal(second.best_params[name], value)
    assert second.optim_configs["W1"]["learning_rate"] == whole.optim_configs["W1"]["learning_rate"]
    for one, two in zip(second.model.bn_params, whole.model.bn_params, strict=True):
        assert np.array_equal(one["running_var"], two["running_var"])


def test_more_epochs_go_on_from_the_last_parameters_not_the_best() -> None:
    whole, parts = _solver(6), _solver(3)
    whole.train()
    parts.train()
    parts.num_epochs = 6
    parts.train()
    assert parts.loss_history == whole.loss_history


def test_resume_with_numpys_global_state(tmp_path: Path) -> None:
    def solver(epochs: int) -> Solver:
        net = FullyConnectedNet([16], 6, 2, dropout_keep=0.5, weight_scale=0.3)
        return Solver(net, _data(), num_epochs=epochs, batch_size=16, verbose=False)

    np.random.seed(4)
    whole = solver(4)
    whole.train()
    np.random.seed(4)
    first = solver(2)
    first.train()
    first.save(tmp_path / "two.npz")
    np.random.seed(77)
    second = solver(4)
    second.resume(tmp_path / "two.npz")
    second.train()
    assert second.loss_history == whole.loss_history


def test_learning_rate_decays_every_epoch() -> None:
    solver = _solver(3, lr_decay=0.5)
    solver.train()
    assert solver.optim_configs["W2"]["learning_rate"] == pytest.approx(1e-2 / 8)


def test_progress_and_printing(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, Any]] = []
    _solver(2, progress=heard.append).train()
    assert [h["epoch"] for h in heard] == [0, 1, 2]
    solver = _solver(1, print_every=2)
    solver.verbose = True
    solver.train()
    printed = capsys.readouterr().out.splitlines()
    assert sum("iteration" in line for line in printed) == 3
    assert sum("epoch" in line for line in printed) == 2


def test_samples_for_accuracy_are_limited() -> None:
    solver = _solver(1, num_train_samples=10, num_val_samples=4)
    solver.train()
    assert all(round(a * 10) == pytest.approx(a * 10) for a in solver.train_acc_history)
    assert all(round(a * 4) == pytest.approx(a * 4) for a in solver.val_acc_history)


def test_a_diverging_training_says_so_and_ends() -> None:
    solver = _solver(2, update_rule="sgd", optim_config={"learning_rate": 1e30})
    with np.errstate(all="ignore"):
        solver.train()
    assert not np.isfinite(solver.loss_history[-1])
    assert len(solver.val_acc_history) == 3


def test_a_larger_batch_than_data_is_one_step() -> None:
    solver = _solver(2, batch_size=500)
    solver.train()
    assert len(solver.loss_history) == 2


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    net, data = FullyConnectedNet([4], 6, 2), _data()
    with pytest.raises(UsageError, match=r"data has no 'y_val'; got the keys \['X_train', 'X_val', 'y_train'\]"):
        Solver(net, {k: v for k, v in data.items() if k != "y_val"})
    with pytest.raises(UsageError, match=r"y_train \(79,\); expected at least one sample, and a label for each"):
        Solver(net, {**data, "y_train": data["y_train"][1:]})
    with pytest.raises(UsageError, match="batch_size must be an integer of at least 1, got 0"):
        Solver(net, data, batch_size=0)
    with pytest.raises(UsageError, match="update_rule must be one of"):
        Solver(net, data, update_rule="adamw")
    with pytest.raises(UsageError, match=r"y holds labels from 0 to 1; expected 0 to 0"):
        Solver(FullyConnectedNet([4], 6, 1), data, verbose=False, num_epochs=1).train()


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    solver = _solver(1)
    (tmp_path / "junk.npz").write_bytes(b"not a checkpoint")
    for name in ("junk.npz", "absent.npz"):
        with pytest.raises(DataError, match=f"{name} is not a checkpoint of a Solver"):
            solver.resume(tmp_path / name)
    np.savez(tmp_path / "pickled.npz", state=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="is not a checkpoint"):
        solver.resume(tmp_path / "pickled.npz")
    solver.save(tmp_path / "good.npz")
    other = Solver(FullyConnectedNet([4], 6, 2), _data(), verbose=False)
    with pytest.raises(DataError, match=r"holds parameters .* the model has"):
        other.resume(tmp_path / "good.npz")
