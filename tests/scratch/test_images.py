"""Convolution and max pooling, as loops and compiled, against torch over odd shapes, and against each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from normlab.scratch import fast_layers, im2col_layers, layers
from tests.scratch.oracle import check_pair, close

CONV = {
    "naive": (layers.conv_forward_naive, layers.conv_backward_naive),
    "im2col": (im2col_layers.conv_forward_im2col, im2col_layers.conv_backward_im2col),
    "fast": (fast_layers.conv_forward_fast, fast_layers.conv_backward_fast),
}
POOL = {
    "naive": (layers.max_pool_forward_naive, layers.max_pool_backward_naive),
    "im2col": (im2col_layers.max_pool_forward_im2col, im2col_layers.max_pool_backward_im2col),
    "fast": (fast_layers.max_pool_forward_fast, fast_layers.max_pool_backward_fast),
}
# (N, C, H, W), (F, HH, WW), stride, pad
SHAPES = [
    ((2, 3, 7, 5), (4, 3, 3), 1, 1),
    ((1, 1, 5, 5), (1, 1, 1), 1, 0),
    ((3, 2, 9, 8), (5, 3, 2), 2, 1),
    ((2, 3, 11, 7), (3, 2, 3), 5, 2),  # stride larger than the filter
    ((2, 2, 6, 6), (2, 1, 1), 3, 0),
    ((1, 4, 10, 13), (9, 5, 4), 3, 2),
    ((2, 3, 5, 5), (2, 5, 5), 1, 0),  # a single window
    ((1, 2, 1, 1), (3, 1, 1), 1, 2),  # mostly padding
    ((2, 1, 4, 4), (6, 7, 7), 2, 2),  # a filter larger than the image
]


def _conv_arrays(shape: tuple[int, ...], kernel: tuple[int, ...], dtype: type) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = shape, (kernel[0], shape[1], *kernel[1:]), kernel[:1]
    return [rng.normal(size=size).astype(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", CONV)
@pytest.mark.parametrize(("shape", "kernel", "stride", "pad"), SHAPES)
def test_convolution_is_torchs(
    which: str, shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, pad: int, dtype: type
) -> None:
    forward, backward = CONV[which]
    check_pair(
        lambda *a: forward(*a, {"stride": stride, "pad": pad}),
        backward,
        _conv_arrays(shape, kernel, dtype),
        lambda x, w, b: F.conv2d(x, w, b, stride=stride, padding=pad),
        numerical=np.prod(shape) < 100,
    )


@pytest.mark.parametrize("which", ["im2col", "fast"])
@given(
    n=st.integers(0, 3),
    channels=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    filters=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 6),
    pad=st.integers(0, 3),
)
def test_any_convolution_is_torchs(
    which: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    filters: int,
    kernel: tuple[int, int],
    stride: int,
    pad: int,
) -> None:
    assume(kernel[0] <= height + 2 * pad and kernel[1] <= width + 2 * pad)
    forward, backward = CONV[which]
    check_pair(
        lambda *a: forward(*a, {"stride": stride, "pad": pad}),
        backward,
        _conv_arrays((n, channels, height, width), (filters, *kernel), np.float64),
        lambda x, w, b: F.conv2d(x, w, b, stride=stride, padding=pad),
        numerical=False,
    )


def test_convolution_gives_the_published_values() -> None:
    x = np.linspace(-0.1, 0.5, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=3 * 3 * 4 * 4).reshape(3, 3, 4, 4)
    expected = np.array(
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
    for forward, _ in CONV.values():
        out, _ = forward(x, w, np.linspace(-0.1, 0.2, num=3), {"stride": 2, "pad": 1})
        np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    arrays = _conv_arrays((70, 5, 16, 16), (8, 3, 3), np.float32)
    forward, backward = CONV["fast"]

    def both() -> list[np.ndarray]:
        out, cache = forward(*arrays, {"stride": 1, "pad": 1})
        return [out, *backward(out, cache)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = both()
        torch.set_num_threads(threads)
        got = both()
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_convolution_is_safe_from_several_threads() -> None:
    arrays = _conv_arrays((40, 5, 16, 16), (8, 3, 3), np.float32)
    expected, _ = CONV["fast"][0](*arrays, {"stride": 1, "pad": 1})
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: CONV["fast"][0](*arrays, {"stride": 1, "pad": 1})[0], range(12)))
    assert all(np.array_equal(out, expected) for out in outs)


def test_many_images_of_many_chunks() -> None:
    """Longer rows of outputs than are summed at a time, more filters and taps than fit one block."""
    arrays = _conv_arrays((2, 7, 33, 37), (13, 3, 3), np.float64)
    check_pair(
        lambda *a: CONV["fast"][0](*a, {"stride": 1, "pad": 1}),
        CONV["fast"][1],
        arrays,
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        numerical=False,
    )


@pytest.mark.parametrize("which", ["im2col", "fast"])
def test_the_gradient_of_the_input_can_be_saved(which: str) -> None:
    forward, backward = CONV[which]
    out, cache = forward(*_conv_arrays((2, 3, 7, 5), (4, 3, 3), np.float64), {"stride": 1, "pad": 1})
    dx, dw, db = backward(out, cache, need_dx=False)
    assert dx is None
    for got, expected in zip((dw, db), backward(out, cache)[1:], strict=True):
        assert np.array_equal(got, expected)


def test_an_infinite_pixel_stays_where_it_is() -> None:
    x, w, b = _conv_arrays((1, 2, 6, 6), (3, 3, 3), np.float64)
    x[0, 0, 0, 0] = np.inf
    out, _ = CONV["fast"][0](x, w, b, {"stride": 1, "pad": 1})
    expected = F.conv2d(*map(torch.tensor, (x, w, b)), padding=1).numpy()
    assert np.isfinite(out[0, :, 3:]).all()
    np.testing.assert_allclose(out, expected)


def test_layouts_and_integers_are_taken_as_they_come() -> None:
    x, w, b = _conv_arrays((2, 3, 7, 5), (4, 3, 3), np.float64)
    expected, _ = CONV["naive"][0](x, w, b, {"stride": 1, "pad": 1})
    for forward, _ in CONV.values():
        out, _ = forward(np.asfortranarray(x), w[..., ::-1].copy()[..., ::-1], b, {"stride": 1, "pad": 1})
        np.testing.assert_allclose(out, expected)
    counts, _ = CONV["fast"][0](np.ones((1, 1, 3, 3), np.uint8), np.ones((1, 1, 3, 3)), [0], {"pad": 1})
    assert counts[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


# (N, C, H, W), (pool_height, pool_width), stride
POOLS = [
    ((2, 3, 8, 8), (2, 2), 2),
    ((1, 2, 7, 9), (3, 3), 2),  # overlapping
    ((2, 1, 9, 7), (2, 3), 1),
    ((3, 2, 11, 5), (2, 1), 4),  # with gaps
    ((1, 1, 3, 3), (3, 3), 1),
    ((2, 2, 4, 4), (1, 1), 1),
]


def _pool_param(window: tuple[int, int], stride: int) -> dict[str, int]:
    return {"pool_height": window[0], "pool_width": window[1], "stride": stride}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", POOL)
@pytest.mark.parametrize(("shape", "window", "stride"), POOLS)
def test_max_pooling_is_torchs(
    which: str, shape: tuple[int, ...], window: tuple[int, int], stride: int, dtype: type
) -> None:
    forward, backward = POOL[which]
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype)
    check_pair(
        lambda x: forward(x, _pool_param(window, stride)), backward, [x], lambda x: F.max_pool2d(x, window, stride)
    )


@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_ties_go_to_the_first_maximum(shape: tuple[int, ...], window: tuple[int, int], stride: int, seed: int) -> None:
    assume(window[0] <= shape[2] and window[1] <= shape[3])
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, size=shape).astype(np.float64)  # few values: many ties
    tensor = torch.tensor(x, requires_grad=True)
    expected = F.max_pool2d(tensor, window, stride) if len(x) else tensor[:, :, :0]
    dout = np.random.default_rng(seed).normal(size=expected.shape)
    expected.backward(torch.tensor(dout))
    for which, (forward, backward) in POOL.items():
        out, cache = forward(x, _pool_param(window, stride))
        if len(x):
            assert np.array_equal(out, expected.detach().numpy()), which
            close(backward(dout, cache), tensor.grad.numpy(), which)
        else:
            assert backward(out, cache).shape == x.shape


def test_max_pooling_gives_the_published_values() -> None:
    x = np.linspace(-0.3, 0.4, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    expected = [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]]
    for forward, _ in POOL.values():
        np.testing.assert_allclose(forward(x, _pool_param((2, 2), 2))[0][0, 0], expected, rtol=1e-6)


def test_nan_passes_through_max_pooling() -> None:
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 2] = np.nan
    results: list[Any] = [forward(x, _pool_param((2, 2), 2)) for forward, _ in POOL.values()]
    for out, _ in results:
        assert np.isnan(out[0, 0, 0, 1])
        assert np.isfinite(np.delete(out.ravel(), 1)).all()
