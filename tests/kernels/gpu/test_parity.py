"""Layers on the Triton backend beside a float64 oracle and torch's layers: every norm in every fused form."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch

import normlab
from tests.gpu.training import batch, make_step, network
from tests.kernels.gpu.interpreting import DEVICE, cut, interpret, triton_gpu
from tests.layers.parity import ACTS, LAYOUTS, NORMS, Case, check, rank_of
from tests.layers.test_parity import edges as common_edges
from tests.layers.test_parity import options as common_options

# the interpreter computes the lanes that are masked out, too
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# odd sizes, no power of two, one sample, groups of two and of five channels; the last is more than a tile holds
SHAPES = ((3, 6, 5, 7), (1, 6, 33), (2, 15, 3, 3), (5, 3, 2, 3, 5), (2, 6, 67, 65))


def on_triton(case: Case) -> Case:
    return replace(case, backend="triton_gpu", device=DEVICE)


forms = [
    on_triton(Case(norm, SHAPES[i % len(SHAPES)], dtype, layout, act=act, residual=residual, groups=3))
    for i, (norm, act, residual, layout, dtype) in enumerate(product(NORMS, ACTS, (False, True), LAYOUTS[:2], DTYPES))
]
ranks = [
    on_triton(Case(norm, (3, 6, 5, 2, 3)[:rank], layout=layout, grad_layout=other, act="relu", residual=True))
    for norm in NORMS
    for rank in rank_of(norm)
    for layout, other in zip(LAYOUTS, ("last", "last", "expanded", "first", "sliced"), strict=True)
]
options = [
    on_triton(replace(case, steps=min(case.steps, 2)))
    for case in common_options
    if case.backend == "numba_cpu" and case.threads == 1 and case.training == (case.layout == "first")
]
edges = [on_triton(case) for case in common_edges if case.backend == "numba_cpu"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(monkeypatch)


@pytest.mark.covering("norm", "dtype", "layout")
@pytest.mark.parametrize("case", forms, ids=str)
def test_fused(case: Case) -> None:
    check(case)


@pytest.mark.covering("norm", "layout")
@pytest.mark.parametrize("case", ranks, ids=str)
def test_ranks_and_layouts(case: Case) -> None:
    check(case)


@pytest.mark.covering
@pytest.mark.parametrize("case", options, ids=str)
def test_options(case: Case) -> None:
    check(case)


@pytest.mark.covering("norm", "shape", "groups", "layout")
@pytest.mark.parametrize("case", edges, ids=str)
def test_edges(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("norm", "autocast"),
    [
        ("bn", False),
        pytest.param("bin", False, marks=pytest.mark.slow),
        pytest.param("gn", False, marks=pytest.mark.slow),
        ("in", True),
    ],
)
def test_training(norm: str, autocast: bool) -> None:
    """Steps of a residual network, in which layers add the shortcut and apply the ReLU."""
    ends = []
    for backend in ("triton_gpu", "reference"):
        net = network(norm, DEVICE, "resnet8", 8)
        step = make_step(net, *batch(3, DEVICE, 8), autocast)
        with normlab.use_backend(backend):
            losses = [float(step()) for _ in range(2)]
        ends.append({"losses": torch.tensor(losses), **net.state_dict()})
    for name, v in ends[0].items():
        scale = 1 + float(ends[1][name].double().abs().max())
        error = float((v.double() - ends[1][name].double()).abs().max())
        assert error <= (2e-2 if autocast else 1e-5) * scale, f"{name} is off by {error:.2e}"


def test_average_of_all_batches_stays_on_the_device() -> None:
    """A momentum that is a tensor, as 1 / batches seen is, gives what the number gives."""
    x, known = torch.randn(4, 3, 5, device=DEVICE), torch.rand(2, 3, device=DEVICE)
    ends = []
    with normlab.use_backend("triton_gpu"):
        for momentum in (0.25, torch.tensor(0.25, dtype=torch.float64, device=DEVICE)):
            mean, var = known.clone()
            normlab.kernels.stages.forward("bn", x, {}, update=(mean, var, momentum))
            ends.append((mean, var))
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.equal(ends[0][0], known[0])


def test_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call of a kind cuts nothing again, whatever its numbers; another momentum is another kind."""
    made = []
    original = cut.Ready.__init__
    monkeypatch.setattr(cut.Ready, "__init__", lambda self, *a: (made.append(a), original(self, *a))[1])
    layer = normlab.make_norm("bn", 7).to(DEVICE)
    with normlab.use_backend("triton_gpu"):
        for momentum, new in ((0.1, 4), (0.1, 0), (0.2, 2), (0.1, 0)):
            made.clear()
            layer.momentum = momentum
            layer(torch.randn(3, 7, 11, device=DEVICE)).sum().backward()
            assert len(made) == new


def test_no_warning_and_no_copy() -> None:
    x = torch.randn(2, 4, 3, 5, device=DEVICE).bfloat16()
    with warnings.catch_warnings(), normlab.use_backend("triton_gpu"):
        warnings.simplefilter("error", normlab.kernels.BackendWarning)
        _, cache = normlab.kernels.stages.forward("gn", x, {})
    assert cache.backend is triton_gpu
    assert cache.x.data_ptr() == x.data_ptr()


# Bug: on a GPU gradients of weight and bias were rows of one tensor, which torch.compile refuses of an operator.
def test_compiled() -> None:
    layer = normlab.make_norm("gn", 8, act="relu").to(DEVICE)
    x = torch.randn(2, 8, 3, 3, device=DEVICE, requires_grad=True)
    with normlab.use_backend("triton_gpu"):
        wanted = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
        got = torch.autograd.grad(torch.compile(layer, backend="aot_eager")(x).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(got, wanted)
