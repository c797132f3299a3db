"""The course's helpers: reading CIFAR-10, sparse and blob gradient checks, grids of images."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from normlab.errors import DataError, UsageError
from normlab.scratch.course.data_utils import get_CIFAR10_data, load_CIFAR10, load_CIFAR_batch
from normlab.scratch.course.gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
)
from normlab.scratch.course.vis_utils import vis_grid, vis_nn, visualize_grid


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    folder = tmp_path / "cs231n" / "datasets" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (8, 3072), np.uint8), "labels": rng.integers(10, size=8).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_cifar10_is_split_and_centred(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(batches.parents[2])
    data = get_CIFAR10_data(num_training=30, num_validation=10, num_test=5)
    assert {name: value.shape for name, value in data.items()} == {
        "X_train": (30, 3, 32, 32), "y_train": (30,), "X_val": (10, 3, 32, 32), "y_val": (10,),
        "X_test": (5, 3, 32, 32), "y_test": (5,),
    }  # fmt: skip
    assert np.abs(data["X_train"].mean(0)).max() < 1e-12
    raw = get_CIFAR10_data(30, 10, 5, subtract_mean=False)
    first = pickle.loads((batches / "data_batch_1").read_bytes())
    assert np.array_equal(raw["X_train"][0], first["data"][0].reshape(3, 32, 32))
    np.testing.assert_allclose(data["X_val"], raw["X_val"] - raw["X_train"].mean(0))
    images, labels, test_images, _ = load_CIFAR10(batches)
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == np.float64
    assert np.array_equal(images[30:].transpose(0, 3, 1, 2), raw["X_val"])
    assert labels[:30].tolist() == data["y_train"].tolist()
    assert len(test_images) == 8


def test_cifar10_from_an_npz_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (12, 3, 32, 32), np.uint8)
    np.savez(tmp_path / "some.npz", x_train=x, y_train=np.arange(12) % 10, x_test=x[:4], y_test=np.arange(4))
    data = get_CIFAR10_data(10, 2, 4, subtract_mean=False, root=tmp_path / "some.npz")
    assert np.array_equal(data["X_train"], x[:10])
    assert np.array_equal(data["X_test"], x[:4])


def test_missing_hostile_and_short_data_are_named(
    batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="50000 training images are asked for, and there are 40; ask for fewer"):
        get_CIFAR10_data(root=batches)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(DataError, match=r"no CIFAR-10 below .*cs231n/datasets/cifar-10-batches-py"):
        get_CIFAR10_data()
    with pytest.raises(DataError, match="data_batch_1 is not a batch of CIFAR-10"):
        get_CIFAR10_data(root=empty)

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(empty / "made"),)

    (empty / "batch").write_bytes(pickle.dumps({"data": Hostile(), "labels": []}))
    with pytest.raises(DataError, match="which a batch of images has no use for"):
        load_CIFAR_batch(empty / "batch")
    assert not (empty / "made").exists()


@pytest.mark.skipif("NORMLAB_TEST_DATA" not in os.environ, reason="needs the real image sets")
@pytest.mark.data
def test_the_real_images_train_a_net() -> None:
    from normlab.scratch.course.classifiers.fc_net import TwoLayerNet
    from normlab.scratch.course.solver import Solver

    data = get_CIFAR10_data(2000, 500, 500, root=Path(os.environ["NORMLAB_TEST_DATA"]) / "cifar10-exact.npz")
    np.random.seed(0)  # noqa: NPY002
    solver = Solver(TwoLayerNet(hidden_dim=50), data, optim_config={"learning_rate": 1e-3}, num_epochs=3, verbose=False)
    solver.train()
    assert solver.best_val_acc > 0.25


def test_blobs_and_nets() -> None:
    rng = np.random.default_rng(0)
    a, b, out = (SimpleNamespace(vals=rng.normal(size=(2, 3)), diffs=np.zeros((2, 3))) for _ in range(3))
    out.diffs = rng.normal(size=(2, 3))

    def multiply(a: Any, b: Any, out: Any) -> None:
        out.vals = a.vals * b.vals

    expected = out.diffs * b.vals, out.diffs * a.vals
    for got, grad in zip(eval_numerical_gradient_blobs(multiply, (a, b), out), expected, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-7)
    net = SimpleNamespace(forward=lambda: multiply(a, b, out))
    for got, grad in zip(eval_numerical_gradient_net(net, (a, b), out), expected, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-7)


def test_sparse_and_printed_checks(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(1.0, 7.0).reshape(2, 3)
    random.seed(0)
    grad_check_sparse(lambda x: float((x**2).sum()), x, 2 * x, num_checks=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("numerical: ") and float(line.split(" ")[-1]) < 1e-7 for line in lines)
    assert np.array_equal(x, np.arange(1.0, 7.0).reshape(2, 3))
    eval_numerical_gradient(lambda x: float(x.sum()), x)
    assert len(capsys.readouterr().out.splitlines()) == 6, "verbose by default, as there"


def test_grids() -> None:
    images = np.random.default_rng(0).normal(size=(5, 4, 6, 3))
    grid = visualize_grid(images, ubound=255.0, padding=2)
    assert grid.shape == (3 * 6 - 2, 3 * 8 - 2, 3)
    assert grid.min() == 0
    assert grid.max() == 255
    second = images[1]
    np.testing.assert_allclose(grid[:4, 8:14], 255 * (second - second.min()) / (second.max() - second.min()))
    assert vis_grid(images).shape == (14, 20, 3)
    assert vis_nn([images[:2], images[2:4]]).shape == (9, 13, 3)
    assert (visualize_grid(np.ones((1, 2, 2, 1))) == 0).all(), "a constant image divides by nothing"
    with pytest.raises(UsageError, match=r"expected \(N, H, W, C\)"):
        visualize_grid(np.ones((2, 2)))
