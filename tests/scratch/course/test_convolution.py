# ruff: noqa: NPY002 - the notebooks seed NumPy's global generator
"""The cells of the notebook on convolutional nets, with the figures that they print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normlab.errors import UsageError
from normlab.scratch.course import fast_layers
from normlab.scratch.course.classifiers.cnn import (
    ThreeLayerConvNet,
    conv_backward_naive,
    conv_forward_naive,
    max_pool_backward_naive,
    max_pool_forward_naive,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from normlab.scratch.course.im2col import col2im_indices, get_im2col_indices, im2col_indices
from normlab.scratch.course.layer_utils import (
    affine_bn_relu_backward,
    affine_bn_relu_forward,
    affine_ln_relu_backward,
    affine_ln_relu_forward,
    affine_norm_relu_backward,
    affine_norm_relu_forward,
    conv_bn_relu_backward,
    conv_bn_relu_forward,
    conv_relu_backward,
    conv_relu_forward,
    conv_relu_pool_backward,
    conv_relu_pool_forward,
)
from tests.scratch.course.cells import below, gradient_errors, net_errors, rel_error

POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}


def test_conv_forward_naive() -> None:
    x = np.linspace(-0.1, 0.5, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=3 * 3 * 4 * 4).reshape(3, 3, 4, 4)
    out, _ = conv_forward_naive(x, w, np.linspace(-0.1, 0.2, num=3), {"stride": 2, "pad": 1})
    correct = np.array(
        [
            [
                [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
                [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
                [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
            ],
            [
                [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
                [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
                [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
            ],
        ]
    )
    assert rel_error(out, correct) == pytest.approx(2.2121476417505994e-08, rel=1e-6)


def test_conv_backward_naive() -> None:
    np.random.seed(231)
    arrays = np.random.randn(4, 3, 5, 5), np.random.randn(2, 3, 3, 3), np.random.randn(2)
    dout = np.random.randn(4, 2, 5, 5)
    errors = gradient_errors(conv_forward_naive, conv_backward_naive, arrays, [{"stride": 1, "pad": 1}], dout)
    below(errors, (1.159803161159293e-08, 2.2471264748452487e-10, 3.37264006649648e-11))


def test_max_pool() -> None:
    x = np.linspace(-0.3, 0.4, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    out, _ = max_pool_forward_naive(x, POOL)
    assert rel_error(out[0, 0], np.array([[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]])) < 5e-8
    assert rel_error(out[1, 2], np.array([[0.32631579, 0.34105263], [0.38526316, 0.4]])) < 5e-8
    np.random.seed(231)
    errors = gradient_errors(
        max_pool_forward_naive, max_pool_backward_naive, [np.random.randn(3, 2, 8, 8)], [POOL],
        np.random.randn(3, 2, 4, 4),
    )  # fmt: skip
    below(errors, [3.27562514223145e-12])


@pytest.mark.parametrize("variant", ["fast", "strides", "im2col"])
def test_conv_variants(variant: str) -> None:
    np.random.seed(231)
    x, w, b = np.random.randn(10, 3, 31, 31), np.random.randn(25, 3, 3, 3), np.random.randn(25)
    dout = np.random.randn(10, 25, 16, 16)
    param = {"stride": 2, "pad": 1}
    naive, naive_cache = conv_forward_naive(x, w, b, param)
    out, cache = getattr(fast_layers, f"conv_forward_{variant}")(x, w, b, param)
    assert rel_error(naive, out) < 1e-8
    expected = conv_backward_naive(dout, naive_cache)
    for grad, other in zip(getattr(fast_layers, f"conv_backward_{variant}")(dout, cache), expected, strict=True):
        assert rel_error(grad, other) < 1e-8


@pytest.mark.parametrize("variant", ["fast", "reshape", "im2col"])
def test_pool_variants(variant: str) -> None:
    np.random.seed(231)
    x, dout = np.random.randn(10, 3, 32, 32), np.random.randn(10, 3, 16, 16)
    naive, naive_cache = max_pool_forward_naive(x, POOL)
    out, cache = getattr(fast_layers, f"max_pool_forward_{variant}")(x, POOL)
    assert np.array_equal(out, naive)
    dx = getattr(fast_layers, f"max_pool_backward_{variant}")(dout, cache)
    assert np.array_equal(dx, max_pool_backward_naive(dout, naive_cache))


def test_reshaping_needs_windows_that_tile() -> None:
    for shape, param in (((1, 1, 5, 4), POOL), ((1, 1, 4, 4), {**POOL, "stride": 1})):
        with pytest.raises(UsageError, match="do not tile x"):
            fast_layers.max_pool_forward_reshape(np.ones(shape), param)


@pytest.mark.parametrize(
    ("shape", "field", "padding", "stride"),
    [((2, 3, 5, 4), (3, 2), 1, 2), ((1, 2, 4, 4), (2, 2), 0, 1)],
)
def test_im2col(shape: tuple[int, ...], field: tuple[int, int], padding: int, stride: int) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    cols = im2col_indices(x, *field, padding, stride)
    k, i, j = get_im2col_indices(shape, *field, padding, stride)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    expected = padded[:, k, i, j].transpose(1, 2, 0).reshape(shape[1] * field[0] * field[1], -1)
    assert np.array_equal(cols, expected)
    # col2im is the transpose of im2col: <im2col(x), c> = <x, col2im(c)>
    c = np.random.default_rng(1).normal(size=cols.shape)
    back = col2im_indices(c, shape, *field, padding, stride)
    assert back.shape == shape
    assert np.vdot(cols, c) == pytest.approx(np.vdot(x, back), rel=1e-12)


def test_conv_sandwiches() -> None:
    np.random.seed(231)
    arrays = np.random.randn(2, 3, 16, 16), np.random.randn(3, 3, 3, 3), np.random.randn(3)
    dout = np.random.randn(2, 3, 8, 8)
    settings = [{"stride": 1, "pad": 1}, POOL]
    errors = gradient_errors(conv_relu_pool_forward, conv_relu_pool_backward, arrays, settings, dout)
    below(errors, (6.514336569263308e-09, 1.490843753539445e-08, 2.037390356217257e-09))
    np.random.seed(231)
    arrays = np.random.randn(2, 3, 8, 8), np.random.randn(3, 3, 3, 3), np.random.randn(3)
    dout = np.random.randn(2, 3, 8, 8)
    errors = gradient_errors(conv_relu_forward, conv_relu_backward, arrays, settings[:1], dout)
    below(errors, (3.5600610115232832e-09, 2.2497700915729298e-10, 1.3087619975802167e-10))


def test_sandwiches_with_norms() -> None:
    rng = np.random.default_rng(0)
    x, w, b, gamma, beta = (rng.normal(size=s) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,), (4,), (4,)))
    settings: list[Any] = [{"stride": 1, "pad": 1}, {"mode": "train"}]
    dout = rng.normal(size=(2, 4, 6, 6))
    errors = gradient_errors(conv_bn_relu_forward, conv_bn_relu_backward, (x, w, b, gamma, beta), settings, dout)
    assert max(errors[:2] + errors[3:]) < 1e-6, "b before a norm has no effect: its error is rounding"
    x, w = rng.normal(size=(5, 6)), rng.normal(size=(6, 4))
    dout = rng.normal(size=(5, 4))
    for forward, backward, settings in (
        (affine_norm_relu_forward, affine_norm_relu_backward, [{"mode": "train"}]),
        (affine_norm_relu_forward, affine_norm_relu_backward, [{}, "layernorm"]),
        (affine_bn_relu_forward, affine_bn_relu_backward, [{"mode": "train"}]),
        (affine_ln_relu_forward, affine_ln_relu_backward, [{}]),
    ):
        errors = gradient_errors(forward, backward, (x, w, b, gamma, beta), settings, dout)
        assert max(errors[:2] + errors[3:]) < 1e-4, errors
    with pytest.raises(UsageError, match="normalization must be one of 'batchnorm', 'layernorm', got 'groupnorm'"):
        affine_norm_relu_forward(x, w, b, gamma, beta, {}, "groupnorm")


def test_three_layer_net_loss() -> None:
    np.random.seed(231)
    model = ThreeLayerConvNet()
    X, y = np.random.randn(50, 3, 32, 32), np.random.randint(10, size=50)
    assert model.loss(X, y)[0] == pytest.approx(2.302586071243987, abs=1e-4)
    model.reg = 0.5
    assert model.loss(X, y)[0] == pytest.approx(2.508255638232932, abs=1e-2)


def test_three_layer_net_gradients() -> None:
    np.random.seed(231)
    X, y = np.random.randn(2, 3, 16, 16), np.random.randint(10, size=2)
    model = ThreeLayerConvNet(num_filters=3, filter_size=3, input_dim=(3, 16, 16), hidden_dim=7, dtype=np.float64)
    errors = net_errors(model, X, y, h=1e-6)
    assert list(errors) == ["W1", "W2", "W3", "b1", "b2", "b3"]
    below(
        list(errors.values()),
        (1.380104e-04, 1.822723e-02, 3.064049e-04, 3.477652e-05, 2.516375e-03, 7.945660e-10),
    )


def test_spatial_batchnorm_train_forward() -> None:
    np.random.seed(231)
    x = 4 * np.random.randn(2, 3, 4, 5) + 10
    axes = (0, 2, 3)
    np.testing.assert_allclose(x.mean(axes), [9.33463814, 8.90909116, 9.11056338], rtol=1e-8)
    np.testing.assert_allclose(x.std(axes), [3.61447857, 3.19347686, 3.5168142], rtol=1e-8)
    out, _ = spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), {"mode": "train"})
    assert out.shape == x.shape
    assert np.abs(out.mean(axes)).max() < 1e-14
    np.testing.assert_allclose(out.std(axes), [0.99999962, 0.99999951, 0.9999996], atol=1e-8)
    out, _ = spatial_batchnorm_forward(x, np.asarray([3, 4, 5]), np.asarray([6, 7, 8]), {"mode": "train"})
    np.testing.assert_allclose(out.mean(axes), [6, 7, 8], rtol=1e-13)
    np.testing.assert_allclose(out.std(axes), [2.99999885, 3.99999804, 4.99999798], atol=1e-8)


def test_spatial_batchnorm_test_forward() -> None:
    np.random.seed(231)
    bn_param: dict[str, Any] = {"mode": "train"}
    for _ in range(50):
        spatial_batchnorm_forward(2.3 * np.random.randn(10, 4, 11, 12) + 13, np.ones(4), np.zeros(4), bn_param)
    bn_param["mode"] = "test"
    out, _ = spatial_batchnorm_forward(2.3 * np.random.randn(10, 4, 11, 12) + 13, np.ones(4), np.zeros(4), bn_param)
    np.testing.assert_allclose(out.mean((0, 2, 3)), [-0.08034406, 0.07562881, 0.05716371, 0.04378383], atol=1e-8)
    np.testing.assert_allclose(out.std((0, 2, 3)), [0.96718744, 1.0299714, 1.02887624, 1.00585577], atol=1e-8)


def test_spatial_batchnorm_backward() -> None:
    np.random.seed(231)
    arrays = 5 * np.random.randn(2, 3, 4, 5) + 12, np.random.randn(3), np.random.randn(3)
    errors = gradient_errors(
        spatial_batchnorm_forward, spatial_batchnorm_backward, arrays, [{"mode": "train"}], np.random.randn(2, 3, 4, 5)
    )
    below(errors, (2.7866481909435755e-07, 7.0974817113608705e-12, 3.275608725278405e-12))


def test_spatial_groupnorm_forward() -> None:
    np.random.seed(231)
    x = 4 * np.random.randn(2, 6, 4, 5) + 10
    rows = x.reshape(4, -1)
    np.testing.assert_allclose(rows.mean(1), [9.72505327, 8.51114185, 8.9147544, 9.43448077], rtol=1e-8)
    np.testing.assert_allclose(rows.std(1), [3.67070958, 3.09892597, 4.27043622, 3.97521327], rtol=1e-8)
    out, _ = spatial_groupnorm_forward(x, np.ones((1, 6, 1, 1)), np.zeros((1, 6, 1, 1)), 2, {})
    assert out.shape == x.shape
    rows = out.reshape(4, -1)
    assert np.abs(rows.mean(1)).max() < 1e-14
    np.testing.assert_allclose(rows.std(1), [0.99999963, 0.99999948, 0.99999973, 0.99999968], atol=1e-8)


def test_spatial_groupnorm_backward() -> None:
    np.random.seed(231)
    arrays = 5 * np.random.randn(2, 6, 4, 5) + 12, np.random.randn(1, 6, 1, 1), np.random.randn(1, 6, 1, 1)
    errors = gradient_errors(
        spatial_groupnorm_forward, spatial_groupnorm_backward, arrays, [2, {}], np.random.randn(2, 6, 4, 5)
    )
    below(errors, (7.413109542981906e-08, 9.468195772749234e-12, 3.354494437653335e-12))
