# ruff: noqa: E501
"""Every function names the argument that is wrong, what came and what was expected; all are ValueErrors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normlab.scratch import fast_layers as fast
from normlab.scratch import layers

ONES = np.ones
CONV, POOL = {"stride": 1, "pad": 0}, {"pool_height": 2, "pool_width": 2, "stride": 2}

CASES: list[tuple[Any, tuple[Any, ...], str]] = [
    (layers.affine_forward, (ONES(3), ONES((3, 2)), ONES(2)), r"x has shape \(3,\); expected \(N, d_1"),
    (layers.affine_forward, (ONES((2, 3)), ONES((4, 2)), ONES(2)), r"w has shape \(4, 2\); expected \(3, M\)"),
    (layers.affine_forward, (ONES((2, 3)), ONES((3, 2)), ONES(3)), r"b has shape \(3,\); expected \(2,\)"),
    (layers.affine_forward, (ONES((2, 3), np.float16), ONES((3, 2)), ONES(2)), r"x must be .*float32 or float64, got dtype float16"),
    (layers.relu_forward, (np.array(["a"]),), r"x must be an array of float32 or float64"),
    (layers.dropout_forward, (ONES(3), {"mode": "train"}), r"dropout_param has no 'p'; got the keys \['mode'\]"),
    (layers.dropout_forward, (ONES(3), {"mode": "train", "p": 0}), r"dropout_param\['p'\] must be a number in \(0, 1\], got 0"),
    (layers.dropout_forward, (ONES(3), {"p": 0.5}), r"dropout_param\['mode'\] must be one of 'train', 'test', got None"),
    (layers.dropout_forward, (ONES(3), {"mode": "train", "p": 0.5, "kind": "x"}), r"dropout_param\['kind'\] must be one of"),
    (layers.batchnorm_forward, (ONES((2, 3, 1)), ONES(3), ONES(3), {"mode": "train"}), r"x has shape \(2, 3, 1\); expected \(N, D\)"),
    (layers.batchnorm_forward, (ONES((2, 3)), ONES(2), ONES(3), {"mode": "train"}), r"gamma has shape \(2,\); expected \(3,\)"),
    (layers.batchnorm_forward, (ONES((2, 3)), ONES(3), ONES(3), {"mode": "eval"}), r"bn_param\['mode'\] must be one of 'train', 'test', got 'eval'"),
    (layers.batchnorm_forward, (ONES((2, 3)), ONES(3), ONES(3), {"mode": "train", "eps": -1}), r"bn_param\['eps'\] must be a number"),
    (layers.batchnorm_forward, (ONES((2, 3)), ONES(3), ONES(3), {"mode": "train", "momentum": 2}), r"bn_param\['momentum'\] must be a number in \[0, 1\], got 2"),
    (layers.batchnorm_forward, (ONES((2, 3)), ONES(3), ONES(3), {"mode": "test", "running_var": ONES(2)}), r"bn_param\['running_var'\] has shape \(2,\); expected \(3,\)"),
    (layers.layernorm_forward, (ONES((2, 3)), ONES(3), ONES(2), {}), r"beta has shape \(2,\); expected \(3,\)"),
    (layers.spatial_batchnorm_forward, (ONES((2, 3)), ONES(3), ONES(3), {"mode": "train"}), r"x has shape \(2, 3\); expected \(N, C, H, W\)"),
    (layers.spatial_groupnorm_forward, (ONES((1, 6, 2, 2)), ONES(6), ONES(6), 2, {}), r"gamma has shape \(6,\); expected \(1, 6, 1, 1\)"),
    (layers.spatial_groupnorm_forward, (ONES((1, 6, 2, 2)), ONES(6), ONES(6), 4, {}), r"G=4 does not divide the 6 channels"),
    (layers.spatial_instancenorm_forward, (ONES((1, 6, 2, 2)), ONES(6), ONES(6), {}), r"gamma has shape \(6,\); expected \(1, 6, 1, 1\)"),
    (layers.spatial_instancenorm_forward, (ONES((1, 6)), ONES(6), ONES(6), {}), r"x has shape \(1, 6\); expected \(N, C, H, W\)"),
    (layers.spatial_layernorm_forward, (ONES((1, 6, 2, 2)), ONES((1, 6, 1, 1)), ONES((1, 6, 1, 1)), {"eps": -1}), r"ln_param\['eps'\] must be a number"),
    (layers.spatial_batchinstancenorm_forward, (ONES((1, 6, 2, 2)), ONES(6), ONES(6), ONES(5), {"mode": "train"}), r"rho has shape \(5,\); expected \(6,\)"),
    (layers.spatial_batchinstancenorm_forward, (ONES((1, 6, 2, 2)), ONES(6), ONES(6), ONES(6), {"mode": "x"}), r"bin_param\['mode'\] must be one of"),
    (layers.softmax_loss, (ONES((2, 3)), [0, 3]), r"y holds labels from 0 to 3; expected 0 to 2"),
    (layers.softmax_loss, (ONES((2, 3)), [0.0, 1.0]), r"y must hold integer labels, got dtype float64"),
    (layers.svm_loss, (ONES((2, 3)), [0]), r"y has shape \(1,\); expected \(2,\)"),
    (layers.svm_loss, (ONES((0, 3)), np.zeros(0, int)), r"at least one sample"),
]  # fmt: skip
for conv, pool in (
    (layers.conv_forward_naive, layers.max_pool_forward_naive),
    (fast.conv_forward_fast, fast.max_pool_forward_fast),
):
    x, w, b = ONES((1, 2, 4, 4)), ONES((3, 2, 3, 3)), ONES(3)
    CASES += [
        (conv, (ONES((2, 4, 4)), w, b, CONV), r"x has shape \(2, 4, 4\); expected \(N, C, H, W\)"),
        (conv, (x, ONES((3, 1, 3, 3)), b, CONV), r"w has shape \(3, 1, 3, 3\); expected \(F, 2, HH, WW\)"),
        (conv, (x, w, ONES(2), CONV), r"b has shape \(2,\); expected \(3,\)"),
        (conv, (x, w, b, {"stride": 0, "pad": 0}), r"conv_param\['stride'\] must be an integer of at least 1, got 0"),
        (conv, (x, w, b, {"stride": 1, "pad": -1}), r"conv_param\['pad'\] must be an integer of at least 0, got -1"),
        (conv, (x, w, b, {"stride": 1.5, "pad": 0}), r"conv_param\['stride'\] must be an integer"),
        (conv, (x, ONES((3, 2, 5, 3)), b, CONV), r"a window of 5 x 3 does not fit into x of shape \(1, 2, 4, 4\) with pad 0"),
        (pool, (x, {"pool_height": 2, "stride": 2}), r"pool_param has no 'pool_width'"),
        (pool, (x, {**POOL, "pool_height": 5}), r"a window of 5 x 2 does not fit"),
    ]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "message"), CASES)
def test_forward_functions_name_what_is_wrong(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def _pairs() -> list[tuple[Any, Any, tuple[Any, ...]]]:
    x2, x4 = ONES((3, 4)), ONES((3, 4, 5, 5))
    g4 = ONES((1, 4, 1, 1))
    return [
        (layers.affine_forward, layers.affine_backward, (x2, ONES((4, 2)), ONES(2))),
        (layers.relu_forward, layers.relu_backward, (x2,)),
        (layers.dropout_forward, layers.dropout_backward, (x2, {"mode": "train", "p": 0.5})),
        (layers.batchnorm_forward, layers.batchnorm_backward, (x2, ONES(4), ONES(4), {"mode": "train"})),
        (layers.batchnorm_forward, layers.batchnorm_backward_alt, (x2, ONES(4), ONES(4), {"mode": "train"})),
        (layers.layernorm_forward, layers.layernorm_backward, (x2, ONES(4), ONES(4), {})),
        (layers.spatial_batchnorm_forward, layers.spatial_batchnorm_backward, (x4, ONES(4), ONES(4), {"mode": "train"})),
        (layers.spatial_groupnorm_forward, layers.spatial_groupnorm_backward, (x4, g4, g4, 2, {})),
        (layers.conv_forward_naive, layers.conv_backward_naive, (x4, ONES((2, 4, 3, 3)), ONES(2), CONV)),
        (fast.conv_forward_fast, fast.conv_backward_fast, (x4, ONES((2, 4, 3, 3)), ONES(2), CONV)),
        (layers.max_pool_forward_naive, layers.max_pool_backward_naive, (x4, POOL)),
        (fast.max_pool_forward_fast, fast.max_pool_backward_fast, (x4, POOL)),
    ]  # fmt: skip


@pytest.mark.parametrize(("forward", "backward", "arguments"), _pairs())
def test_backward_functions_name_a_gradient_of_the_wrong_shape(forward: Any, backward: Any, arguments: Any) -> None:
    _, cache = forward(*arguments)
    with pytest.raises(ValueError, match=r"dout has shape \(7,\); expected"):
        backward(np.ones(7), cache)
