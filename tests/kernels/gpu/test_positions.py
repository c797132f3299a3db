"""LayerNorm, RMSNorm and ChannelNorm on the Triton backend, by the comparison of `tests.kernels.test_positions`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import normlab
from normlab.kernels import positions
from normlab.kernels.contract import POSITIONS
from normlab.layers import ChannelNorm, LayerNorm, RMSNorm
from tests.kernels import test_exponents as exponents
from tests.kernels.gpu.interpreting import DEVICE, interpret, mistaken, position_kernels, triton_positions
from tests.kernels.test_positions import KINDS, check

# the interpreter computes the lanes that are masked out, and in NumPy, which warns of what overflows
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def served_by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interpret(monkeypatch)
    for made in (triton_positions._forward, triton_positions._backward):
        made.cache_clear()  # cut by other numbers
    with normlab.use_backend("triton_gpu"), torch.device(DEVICE):
        yield
    for made in (triton_positions._forward, triton_positions._backward):
        made.cache_clear()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, shape) for kind in ("layer", "rms") for shape in ((1, 1), (5, 1), (1, 7), (9, 31), (2, 3, 5, 17))),
        *(("channel", shape) for shape in ((3, 5), (1, 1, 1), (2, 3, 1), (2, 7, 9), (2, 6, 3, 4, 2))),
    ],
)
def test_odd_sizes(kind: str, shape: tuple[int, ...]) -> None:
    check(kind, shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "shape"), [("layer", (7, 33)), ("rms", (7, 33)), ("channel", (2, 7, 5, 4))])
def test_dtypes(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Half precision is rounded once, at the end; parameters may be of float32 (mixed precision)."""
    options = {"eps": 1e-3} if kind == "rms" else {}
    check(kind, shape, dtype, **options)
    if dtype.itemsize == 2:
        layer = {"layer": LayerNorm, "rms": RMSNorm, "channel": ChannelNorm}[kind](shape[1])
        x = torch.randn(shape).to(dtype).requires_grad_()
        y = layer(x)
        dx, *grads = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
        assert (y.dtype, dx.dtype, {g.dtype for g in grads}) == (dtype, dtype, {torch.float32})


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["last", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory(kind: str, layout: str) -> None:
    check(kind, (2, 8, 3, 4), layout=layout)


@pytest.mark.parametrize("options", [{"elementwise_affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_without_parameters(kind: str, options: dict[str, bool]) -> None:
    check(kind, (4, 6, 8), **options)


@pytest.mark.parametrize(("kind", "shape"), [("layer", (5, 70)), ("rms", (5, 70)), ("channel", (2, 33, 21))])
def test_more_elements_than_a_tile(kind: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of parts, and a launch of its own for the gradients of weight and bias; several tiles for an instance."""
    monkeypatch.setattr(triton_positions, "_TILE", 32)
    monkeypatch.setattr(triton_positions, "_COLUMNS", 4)
    monkeypatch.setattr(triton_positions, "_LARGEST", 32)
    monkeypatch.setattr(triton_positions, "_SUMMED", (2, 16))
    monkeypatch.setattr(triton_positions, "_RESIDENT", 2)
    check(kind, shape)
    check(kind, shape, mean=100.0)


def test_several_tiles_for_an_instance() -> None:
    """More rows than instances hold, so that each goes over several tiles and leaves one sum."""
    check("layer", (1300, 66))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_nobody_asks_for(kind: str) -> None:
    """Only one of weight and bias, or none, learns."""
    shape = (3, 6, 5) if kind == "channel" else (7, 6)
    x, g, weight = torch.randn(shape), torch.randn(shape), torch.rand(6)
    _, cache = positions.forward(x, weight, centred=kind != "rms")
    full = positions.backward(g, x, weight, cache)
    for learns in ((True, False), (False, True), (False, False)):
        got = positions.backward(g, x, weight, cache, learns)
        torch.testing.assert_close(got[0], full[0])
        for v, want, learned in zip(got[1:], full[1:], learns, strict=True):
            assert (v is not None) == learned
            if v is not None:
                torch.testing.assert_close(v, want)


# Bug: on a GPU squares of float32 beyond 1.8e19 would overflow, as on the CPU.
@pytest.mark.parametrize("norm", list(exponents.POSITIONS))
def test_ends_of_the_exponent(norm: str) -> None:
    for size, factor in ((1e-30, 1.0), (3e38 / 3.1, 1.0), (1e15, 1e30)):
        x, g = (v.to(DEVICE) for v in exponents.elements(norm, size, "first", torch.float32))
        g = g * factor
        got = exponents.run(exponents.make(norm, size).to(DEVICE), x, g)
        want = exponents.truth(exponents.make(norm, size).to(DEVICE), x, g)
        exponents.compare([v.cpu() for v in got], [v.cpu() for v in want])


def test_infinite_numbers_stay_where_they_are() -> None:
    x = torch.randn(3, 9)
    x[0, 2], x[1, 3] = torch.inf, torch.nan
    for layer, stock in ((LayerNorm, torch.nn.LayerNorm), (RMSNorm, torch.nn.RMSNorm)):
        torch.testing.assert_close(layer(9)(x), stock(9)(x), equal_nan=True)


def test_chosen_without_a_warning() -> None:
    x = torch.randn(2, 3)
    assert normlab.backend_for(x, POSITIONS) == "triton_gpu"
    assert positions.positions_for(x) is triton_positions


# --- teeth -----------------------------------------------------------------------------------------------------------


SABOTAGE = {
    "mean is rounded": ("t = r * (m.to(tl.float64) - mean)", "t = r * 0.0", ("layer", (3, 40), 1e6)),
    "dx without h": ("up * row - h * b", "up * row", ("rms", (3, 40), 0.0)),
    "dx without the average": ("v -= c", "v -= 0.0", ("layer", (3, 40), 0.0)),
    "bias of another element": ("sum_b, mask=e < E", "sum_w, mask=e < E", ("channel", (2, 6, 5), 0.0)),
    "last tile of positions is dropped": ("s.to(tl.int64), s < S", "s.to(tl.int64), s < S - 1", ("layer", (5, 7), 0.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails with a mistake written into the kernels' text."""
    right, wrong, (kind, shape, mean) = SABOTAGE[name]
    monkeypatch.setattr(triton_positions, "kernels", mistaken(position_kernels, right, wrong, tmp_path))
    with pytest.raises(AssertionError, match="error"):
        check(kind, shape, mean=mean)
