"""The course's package under its own name: written into a folder, or put into `sys.modules` in three lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.errors import UsageError
from normlab.scratch.course.install import install_as

# what the first cells of the notebooks of 2016 to 2022 import
CELL = """
from cs231n.classifiers.fc_net import *
from cs231n.classifiers.cnn import *
from cs231n.data_utils import get_CIFAR10_data, load_CIFAR10
from cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, grad_check_sparse
from cs231n.gradient_check import eval_numerical_gradient_blobs, eval_numerical_gradient_net
from cs231n.layers import *
from cs231n.layer_utils import *
from cs231n.fast_layers import conv_forward_fast, conv_backward_fast, max_pool_forward_reshape
from cs231n.im2col import im2col_indices, col2im_indices
from cs231n.optim import sgd_momentum, rmsprop, adam
from cs231n.solver import Solver
from cs231n.vis_utils import visualize_grid
import numpy as np
np.random.seed(231)
X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
model = FullyConnectedNet([20, 30], input_dim=15, num_classes=10, weight_scale=5e-2, dtype=np.float64)
print(model.loss(X, y)[0], batchnorm_forward.__name__, affine_relu_forward.__name__)
"""
PRINTED = "2.3004790897684924 batchnorm_forward affine_relu_forward\n"


def _run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=folder, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_written_package_serves_the_notebooks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "normlab", "scratch", "install-as", "cs231n", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'cs231n'}" in done.stdout
    assert not (tmp_path / "cs231n" / "install.py").exists()
    assert _run("import sys; sys.path.insert(0, '.')\n" + CELL, tmp_path) == PRINTED


def test_three_lines_serve_the_notebooks(tmp_path: Path) -> None:
    from normlab.scratch import course

    assert course.__doc__ is not None
    lines = [line.strip() for line in course.__doc__.splitlines() if line.startswith("    ")][:3]
    assert _run("\n".join(lines) + "\n" + CELL, tmp_path) == PRINTED


def test_a_package_of_ours_is_written_again_and_another_left_alone(tmp_path: Path) -> None:
    install_as("cs231n", tmp_path)
    assert install_as("cs231n", tmp_path) == tmp_path / "cs231n"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("")
    with pytest.raises(UsageError, match="theirs exists and is not ours; move it away"):
        install_as("theirs", tmp_path)
    with pytest.raises(UsageError, match="'cs-231n' is not a name that can be imported"):
        install_as("cs-231n", tmp_path)
