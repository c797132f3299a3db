"""A row: both sides compute the same thing, ratios are torch's time over ours, and what does not fit is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from normlab.bench import layers, sides, work
from normlab.bench.work import Work, grid
from normlab.errors import DataError, UsageError
from normlab.study.training import compiling
from tests.bench.conftest import Turns

SHAPES = [(2, 8, 4, 4), (4, 8), (3, 8, 5), (2, 8, 3, 2, 2)]
NORMS = (*work.NORMS, "gn:groups=4", *work.POSITION_NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_both_sides_compute_the_same(norm: str) -> None:
    for row in grid([norm], work.FORMS, SHAPES, work.LAYOUTS, act="gelu", dtype="float64"):
        torch.manual_seed(0)
        inputs = [sides.arrange(sides.random_tensor(row, s, "cpu"), row.layout) for s in range(1 + row.residual)]
        dy = sides.arrange(sides.random_tensor(row, 2, "cpu"), row.layout)
        found = []
        for layer in (sides.our_layer(row).double(), sides.stock_layer(row).double()):
            leaves = [x.clone().requires_grad_() for x in inputs]
            y = layer(*leaves)
            found.append([y, *torch.autograd.grad(y, [*leaves, *layer.parameters()], dy)])
        ours, torchs = found
        for a, b in zip(ours, torchs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda text, row=row: f"{row.name}: {text}")


def test_a_row_says_what_was_measured(timed: Turns) -> None:
    timed([2.0, 8.0, 4.0])  # a copy, torch's layer, ours
    row = layers.measure(Work("gn", (2, 8, 4, 4), "channels_last", True, "relu"), rounds=3)
    assert row["ours_ms"] == 4
    assert row["eager_ms"] == 8
    assert row["eager_ratio"] == 2
    assert row["copy_ms"] == 2
    assert row["floor_ms"] == 2 * row["bytes_moved"] / (2 * row["tensor_bytes"])
    assert row["floor_share"] == row["floor_ms"] / 4
    assert row["compiled_ms"] is None
    assert row["compiled_ratio"] is None
    assert (row["form"], row["rounds"]) == ("norm + res + relu", 3)


def test_the_compiled_side_is_the_stock_layer_compiled(timed: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(layers, "compiled", lambda layer: seen.append(layer) or layer)
    timed([1.0, 6.0, 2.0, 3.0])
    row = layers.measure(Work("bn", (2, 8, 4, 4), act="relu"), rounds=2, with_compiled=True)
    assert [type(layer) for layer in seen] == [sides.Composed]
    assert (row["eager_ratio"], row["compiled_ratio"]) == (3, 1.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own compiler
def test_torch_compile_compiles_the_stock_layer() -> None:
    try:
        compiling.check_compiler("cpu")
    except UsageError as error:
        pytest.skip(str(error))
    row = layers.measure(Work("gn", (2, 8, 4, 4), residual=True, act="relu"), rounds=1, with_compiled=True)
    assert row["compiled_ms"] > 0


def test_without_a_compiler_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"C\+\+ compiler \(no-such-compiler on the PATH\)"):
        compiling.check_compiler("cpu")


@pytest.mark.filterwarnings("ignore::normlab.kernels.BackendWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_run(dtype: str) -> None:
    assert layers.measure(Work("bn", (2, 8, 4, 4), dtype=dtype), rounds=1)["ours_ms"] > 0


def test_a_shape_that_a_norm_does_not_take_is_a_mistake_of_usage() -> None:
    with pytest.raises(UsageError, match="bn, norm, 1x8x1x1"):
        layers.measure(Work("bn", (1, 8, 1, 1)), rounds=1)
    with pytest.raises(UsageError, match="norm 'gn:groups=3' on 8 channels"):
        sides.stock_layer(Work("gn:groups=3", (2, 8, 4, 4)))


@pytest.mark.parametrize("shape", [(99999, 999, 999, 999), (999999999, 99999, 99999)])
def test_a_shape_that_no_memory_takes_is_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="not enough memory; choose a smaller shape"):
        layers.measure(Work("bn", shape), rounds=1)


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Work) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(layers, "our_layer", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        layers.measure(Work("bn", (2, 8, 4, 4)), rounds=1)
