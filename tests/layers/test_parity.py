"""Every layer beside a float64 oracle and torch's layer: ranks, dtypes, layouts, options, train and eval."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.layers.parity import BACKENDS, LAYOUTS, NORMS, SHAPES, Case, check, rank_of

DTYPES = (torch.float32, torch.float64)

forms = [
    Case(norm, SHAPES[rank], dtype, layout, backend=backend, grad_layout=grad_layout)
    for norm in NORMS
    for rank in rank_of(norm)
    for (layout, grad_layout), dtype, backend in product(
        zip(LAYOUTS, ("last", "last", "expanded", "first", "sliced"), strict=True), DTYPES, BACKENDS
    )
]
OPTIONS: dict[str, list[dict]] = {
    "bn": [{"momentum": 0.3}, {"momentum": None}, {"momentum": 1.0}, {"track_running_stats": False}],
    "in": [{"track_running_stats": True}, {"track_running_stats": True, "momentum": 0.3}],
    "bin": [{"momentum": 0.3}, {"momentum": None}, {"track_running_stats": False}],
    "ln": [],
    "gn": [],
}
options = [
    Case(
        norm, layout=layout, backend=backend, training=training, steps=1 + 2 * training, options=chosen, threads=threads
    )
    for norm in NORMS
    for chosen in [
        {},
        {"affine": False},
        {"bias": False},
        {"eps": 1e-3},
        {"eps": 0.5, "affine": False},
        *OPTIONS[norm],
    ]
    for layout, (backend, threads), training in product(
        ("first", "last"), (("numba_cpu", 1), ("numba_cpu", 2), ("reference", 2)), (True, False)
    )
]
edges = [
    Case(norm, shape, layout=layout, backend=backend, groups=groups, training=training)
    for norm, shape, groups in [
        ("bn", (5, 1, 3, 3), 1),  # one channel
        ("bn", (1, 8, 5, 5), 1),  # one sample
        ("bn", (5, 8, 1, 1), 1),  # one position
        ("bn", (3, 300, 2, 3), 1),  # more channels than a joined row of channels-last data
        ("in", (1, 8, 5, 5), 1),
        ("in", (4, 1, 3, 2), 1),
        ("bin", (1, 8, 5, 5), 1),
        ("bin", (4, 1, 3, 2), 1),
        ("ln", (1, 8, 5, 5), 1),
        ("ln", (4, 8, 1, 1), 1),
        ("ln", (4, 1, 3, 2), 1),
        ("gn", (1, 8, 5, 5), 4),
        ("gn", (4, 8, 1, 1), 2),
        ("gn", (2, 6, 3, 3), 6),  # as instance norm
        ("gn", (2, 6, 3, 3), 1),  # as layer norm
        ("gn", (2, 6, 3, 3), 3),
    ]
    for layout, backend, training in product(("first", "last"), BACKENDS, (True, False))
]
large = [  # several units of work for each thread, in both layouts
    Case(norm, shape, layout=layout)
    for norm in NORMS
    for shape, layout in product(((64, 16, 20, 20), (2, 16, 150, 150)), ("first", "last"))
]
# channels-last rows of which no whole number makes a power of two, and more of them than are summed at a time
large += [
    Case(norm, shape, layout="last", dtype=dtype)
    for norm in NORMS
    for shape, dtype in product(((20, 12, 40, 40), (2, 12, 100, 100), (3, 300, 12, 12)), (torch.float32, torch.float64))
]


@pytest.mark.covering("norm", "backend", "layout", "dtype")
@pytest.mark.parametrize("case", forms, ids=str)
def test_form(case: Case) -> None:
    check(case)


@pytest.mark.covering("norm", "options", "training")
@pytest.mark.parametrize("case", options, ids=str)
def test_options(case: Case) -> None:
    check(case)


@pytest.mark.covering("norm", "shape", "groups", "layout", "training")
@pytest.mark.parametrize("case", edges, ids=str)
def test_edges(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", large, ids=str)
def test_large(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("norm", NORMS)
def test_constant_planes(norm: str) -> None:
    """No variance at all: eps alone keeps the output finite."""
    import normlab

    x = torch.full((4, 8, 3, 3), 7.0, requires_grad=True)
    y = normlab.make_norm(norm, 8)(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
