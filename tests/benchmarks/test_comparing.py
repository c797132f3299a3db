"""The tables that set a comparison beside a plain loop, and one direction beside the other."""

from __future__ import annotations

import pytest
import torch

from benchmarks import comparing, directions, plain
from normlab.bench.work import Work


def test_rates_are_medians_by_norm() -> None:
    printed = """
    resnet14, bn, seed 0: epoch 1: val 0.1, 400 images/s
    resnet14, bn, seed 0: epoch 2: val 0.2, 500 images/s
    resnet14, bn, seed 0: epoch 3: val 0.2, 900 images/s
    torch-bn: 450 images/s
    no norm is meant by binary: 3 images/s
    """
    assert comparing.rates(printed) == {"bn": 500, "torch-bn": 450}


def test_a_ratio_is_above_one_where_ours_is_faster() -> None:
    ours, first, last = ({"bn": 300.0, "torch-bn": 200.0, "total": seconds} for seconds in (10.0, 40.0, 20.0))
    table = "\n".join(comparing.lines([(ours, {**first, "bn": 100.0}, {**last, "bn": 150.0})]))
    assert "2.00x" in table.splitlines()[1], "300 images a second beside the better 150"
    assert "2.00x" in table.splitlines()[3], "10 seconds beside the better 20"
    assert "bn over torch-bn: 1.50x" in table


@pytest.mark.parametrize(
    ("work", "moved"),
    [
        (Work("bn", (8, 4, 2, 2)), (3, 5)),
        (Work("gn", (8, 4, 2, 2)), (2, 3)),
        (Work("gn", (8, 4, 2, 2), act="relu"), (2, 3)),
        (Work("bn", (8, 4, 2, 2), residual=True, act="relu"), (4, 7)),
    ],
)
def test_tensors_that_a_pass_goes_over(work: Work, moved: tuple[int, int]) -> None:
    assert directions.tensors_moved(work) == moved


@pytest.mark.parametrize("last", [False, True])
def test_the_plain_loop_crops_and_mirrors_whole_batches(last: bool) -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
    x = plain.prepare(images, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), last)
    assert x.shape == images.shape
    assert x.is_contiguous(memory_format=torch.channels_last) == last
    assert plain.network(plain.norm_of("bin"), 10)(x).shape == (2, 10)
