"""The activations inside layers, beside torch's functions: values, slopes, half precision, second derivatives."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normlab
from normlab import layers
from normlab.errors import UsageError
from normlab.kernels.activations import NAMES, activation
from normlab.layers.acting import activation_of
from tests.layers.parity import ACTS, MORE_ACTS, acted

SPECS: tuple[str, ...] = (*(act for act in ACTS if act), *(act for act in MORE_ACTS if act))
ENDS = [-1e6, 1e6, -100.0, -40.0, -6.0, -3.0, -1.702, -0.35, -1e-3, 0.0, 1e-3, 0.3, 3.0, 6.0, 40.0, 100.0, 2.0, -2.0]


def at(numbers: list[float], act: str, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """z, act(z) and act'(z): a norm that changes nothing but for its activation, as its running statistics say."""
    layer = layers.BatchNorm(1, eps=1e-300, affine=False, act=act).to(dtype).eval()
    layer.running_var.fill_(1)
    z = torch.tensor(numbers, dtype=dtype).view(-1, 1).requires_grad_()
    with normlab.use_backend(backend):
        y = layer(z)
        (slope,) = torch.autograd.grad(y.sum(), z)
    return z, y.detach(), slope


def cases(acts: Iterable[str | None]) -> list[Any]:
    """(activation, dtype): each in float32, mish in the others, too; the rest are slow, for each has to be compiled."""
    return [
        pytest.param(act, dtype, marks=() if dtype == torch.float32 or act == "mish" else pytest.mark.slow)
        for act, dtype in itertools.product(acts, (torch.float32, torch.float64, torch.bfloat16))
    ]


TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize(("act", "dtype"), cases(SPECS))
def test_values_and_slopes_are_torchs(act: str, dtype: torch.dtype) -> None:
    """To the ends, at the kinks, and near zero, where a difference of exponentials loses digits."""
    check_values_and_slopes(act, dtype, "numba_cpu")


# bug: the reference in half precision, and in evaluation, could not say that it keeps nothing
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("act", SPECS)
def test_those_of_the_reference_are_torchs(act: str, dtype: torch.dtype) -> None:
    check_values_and_slopes(act, dtype, "reference")


def check_values_and_slopes(act: str, dtype: torch.dtype, backend: str) -> None:
    tolerance = TOLERANCES[dtype]
    z, y, slope = at(ENDS, act, dtype, backend)
    exact = z.detach().double().requires_grad_()
    want = acted(act, exact)
    (want_slope,) = torch.autograd.grad(want.sum(), exact)
    # what the kernels themselves have loses relative digits where it nearly vanishes, as torch does
    small = tolerance if act in ACTS or dtype == torch.bfloat16 else 1e-31
    torch.testing.assert_close(y.double(), want.detach(), rtol=tolerance, atol=small)
    torch.testing.assert_close(slope.double(), want_slope, rtol=tolerance, atol=tolerance)


class Behind(nn.Module):
    def __init__(self, norm: nn.Module, act: str) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return acted(self.act, self.norm(x) + residual)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("act", "dtype"), cases(MORE_ACTS))
def test_behind_a_norm_and_an_addition(act: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    bound = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.manual_seed(0)
    ours, stock = layers.GroupNorm(2, 8, act=act), nn.GroupNorm(2, 8).double()
    x, added, dy = (torch.randn(9, 8, 5, 7).to(dtype, memory_format=layout) for _ in range(3))
    found: list[list[Tensor]] = []
    for run in (ours.to(dtype), Behind(stock, act)):
        kind = torch.float64 if found else dtype
        v, r = x.to(kind).requires_grad_(), added.to(kind).requires_grad_()
        y: Any = run(v, r)
        found.append([t.double() for t in (y, *torch.autograd.grad(y, [v, r], dy.to(kind)))])
    for got, want in zip(*found, strict=True):
        assert (got - want).norm() <= bound * want.norm(), act


@pytest.mark.parametrize("act", SPECS)
def test_second_derivatives(act: str) -> None:
    layer = layers.GroupNorm(2, 4, act=act).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, x)


TORCHS: dict[str, tuple[nn.Module, Any]] = {
    "relu6": (nn.ReLU6(), F.relu6),
    "hardsigmoid": (nn.Hardsigmoid(), F.hardsigmoid),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "elu:alpha=0.5": (nn.ELU(0.5), lambda v: F.elu(v, alpha=0.5)),
    "elu": (nn.ELU(), F.elu),
    "tlu:threshold=0.25": (nn.Threshold(0.25, 0.25), lambda v: F.threshold(v, 0.25, 0.25)),
    "mish": (nn.Mish(), F.mish),
}


class Calling(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(3), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("act", TORCHS)
def test_taken_in_from_a_module_and_from_a_call(act: str) -> None:
    for form in TORCHS[act]:
        model, x = Calling(form), torch.randn(2, 3, 5, 5)
        fused = normlab.fuse_norms(copy.deepcopy(model), x)
        assert normlab.swap_report(fused).fused == {"norm": act}
        torch.testing.assert_close(fused(x), model(x))
        restored = normlab.restore_norms(fused)
        torch.testing.assert_close(restored.eval()(x), model.eval()(x))


class QuickGELU(nn.Module):
    """As CLIP's."""

    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(1.702 * input)


class HardSwish(nn.Module):
    """As timm's."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(x + 3.0).div_(6.0)
        return x.mul_(inner) if self.inplace else x.mul(inner)


class Counting(nn.Module):
    """A ReLU with a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.relu()


class Noisy(nn.Module):
    """A ReLU in evaluation only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * (1 + 0.1 * torch.randn_like(x)) if self.training else x.relu()


def test_activations_of_others_are_found_by_what_they_compute() -> None:
    assert activation_of(QuickGELU()) == activation("quick_gelu")
    assert activation_of(HardSwish()) == activation_of(HardSwish(True)) == activation("hardswish")
    for other in (Counting(), Noisy(), nn.GELU("tanh"), nn.Threshold(0.0, 1.0), nn.Tanh(), nn.PReLU(), nn.Identity()):
        assert activation_of(other) is None
    watched = QuickGELU()
    watched.register_forward_hook(lambda *_: None)
    assert activation_of(watched) is None


@pytest.mark.parametrize("spec", ["tanh", "relu6:max=3", "elu:slope=1", "elu:alpha=inf", "tlu:threshold=", "gelu:0.2"])
def test_specs_that_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="act="):
        layers.BatchNorm(3, act=spec)


@pytest.mark.parametrize("spec", SPECS)
def test_specs_are_printed_as_they_are_read(spec: str) -> None:
    act = activation(spec)
    assert activation(str(act)) == act
    assert str(act) == spec
    assert {spec.partition(":")[0] for spec in SPECS} == set(NAMES)
