"""Norms that differ from a kind in a stage: right ones conform as themselves, slips in them are found and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normlab.check import Report
from normlab.check.engine import examine
from normlab.check.relatives import NAMES, NOT_CHECKED, RELATIVES
from normlab.check.subjects import subject_of
from normlab.errors import UsageError
from normlab.norms.family import norm_names

ONLY = ("target", "values", "gradients", "layouts.one-sample", "layouts.other-sizes")


def looked_at(layer: Any, kind: str) -> Report:
    return examine(subject_of(layer, kind=kind), kind, quick=True, only=ONLY)


class Layer(nn.Module):
    """weight * normalized(x) + bias, with running statistics where `tracks`."""

    tracks, shared = False, 1

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features // self.shared))
        self.bias = nn.Parameter(torch.zeros(num_features // self.shared))
        if self.tracks:
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def spread(self, parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return parameter.repeat_interleave(self.shared).reshape(1, -1, *[1] * (x.dim() - 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spread(self.weight, x) * self.normalized(x) + self.spread(self.bias, x)


class Tracked(Layer):
    tracks = True

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axes = (0, *range(2, x.dim()))
        return x.mean(axes), x.var(axes, unbiased=False)

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self.moments(x)
            n = x.numel() // x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return self.standardized(x, mean.reshape(shape), var.reshape(shape))

    def standardized(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class MeanOnly(Tracked):
    def standardized(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return x - mean


class VarianceOnly(Tracked):
    def standardized(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(var + self.eps)


class VarianceOnlyOutside(Tracked):
    def standardized(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return x / (torch.sqrt(var) + self.eps)


class Power(VarianceOnly):
    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, _ = super().moments(x)
        return 0 * mean, (x**2).mean((0, *range(2, x.dim())))


class FilterResponse(Layer):
    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x**2).mean(tuple(range(2, x.dim())), keepdim=True) + self.eps)


class FilterResponseCentred(Layer):
    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(2, x.dim()))
        x = x - x.mean(axes, keepdim=True)
        return x * torch.rsqrt((x**2).mean(axes, keepdim=True) + self.eps)


class FilterResponseDetached(Layer):
    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x.detach() ** 2).mean(tuple(range(2, x.dim())), keepdim=True) + self.eps)


class GroupWeights(Layer):
    shared, groups = 3, 2

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(x, self.groups, eps=self.eps)


class OfHalves(Layer):
    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[1] // 2
        axes = tuple(range(2, x.dim()))

        def standardized(part: torch.Tensor, over: tuple[int, ...]) -> torch.Tensor:
            mean, var = part.mean(over, keepdim=True), part.var(over, keepdim=True, unbiased=False)
            return (part - mean) / torch.sqrt(var + self.eps)

        return torch.cat([standardized(x[:, :half], axes), standardized(x[:, half:], (0, *axes))], 1)


class ScaleNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.g, self.eps, self.dim = nn.Parameter(torch.ones(1)), eps, dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.g * x / x.norm(dim=-1, keepdim=True).clamp(min=self.eps)


class ScaleNormMean(ScaleNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.g * x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=self.eps)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("mobn", MeanOnly),
        ("vobn", VarianceOnly),
        ("power", Power),
        ("frn", FilterResponse),
        ("gn-shared", GroupWeights),
        ("ibn-a", OfHalves),
        ("scalenorm", ScaleNorm),
        ("bn", nn.BatchNorm2d),
        ("ibn-b", nn.InstanceNorm2d),
        ("ln-elementwise", nn.LayerNorm),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_relative_conforms_as_itself(kind: str, layer: Any) -> None:
    report = looked_at(layer, kind)
    assert report.ok, report.text()
    assert RELATIVES[kind].formula in report.dialect["norm"]


@pytest.mark.parametrize(
    ("kind", "layer", "cause"),
    [
        ("vobn", VarianceOnlyOutside, "eps-outside-root"),
        ("frn", FilterResponseCentred, None),
        ("frn", FilterResponseDetached, "dx-statistics-constant"),
        ("scalenorm", ScaleNormMean, None),
        ("mobn", VarianceOnly, None),
    ],
)
def test_a_slip_in_a_relative_is_found(kind: str, layer: Any, cause: str | None) -> None:
    report = looked_at(layer, kind)
    assert not report.ok
    assert cause is None or set(report.causes) == {cause}, report.text()


def test_a_norm_without_a_formula_here_is_refused_and_says_why() -> None:
    with pytest.raises(
        UsageError, match=r"--as dyt: not checked as itself: it pools nothing.*; expected one of batch,"
    ):
        looked_at(nn.LayerNorm, "dyt")
    with pytest.raises(UsageError, match=r"--as 'dit': expected one of batch, .*scalenorm"):
        looked_at(nn.LayerNorm, "dit")


def test_of_every_member_of_the_family_there_is_a_check_or_a_reason() -> None:
    others = {
        "batch",
        "layer",
        "instance",
        "group",
        "batch-instance",
    }  # the kinds' longer names, which the family lacks
    assert set(norm_names()) == {*NAMES, *NOT_CHECKED} - others
