"""No false alarm: correct layers conform, each in its own dialect; what is found about them is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlab
from normlab.check import Report, conformance

STOCK = [
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.SyncBatchNorm,  # in one process it is batch norm
]


def bugs(report: Report) -> set[str]:
    return {f"{f.check}: {f.cause}" for f in report.bugs}


@pytest.mark.parametrize("layer", STOCK, ids=lambda c: c.__name__)
def test_torch_modules_conform(layer: Any) -> None:
    # docs/findings.md reproduces it: channels-last group norm cancels on the CPU
    known = {"layouts.channels-last-mean: channels-last-cancellation"} if layer is nn.GroupNorm else set()
    report = conformance(layer, quick=True)
    assert bugs(report) <= known, report.text()
    assert sum(f.status == "pass" for f in report.findings) > 25


@pytest.mark.parametrize(
    "instance",
    [
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        nn.BatchNorm2d(8, affine=False),
        nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
        nn.LayerNorm((4, 3)),
        nn.LayerNorm(7, bias=False),
        nn.GroupNorm(2, 8, eps=1e-3, affine=False),
        nn.RMSNorm(5, eps=1e-6),
    ],
    ids=str,
)
def test_torch_instances_conform(instance: nn.Module) -> None:
    report = conformance(instance, quick=True)
    known = {"layouts.channels-last-mean: channels-last-cancellation"} if isinstance(instance, nn.GroupNorm) else set()
    assert bugs(report) <= known, report.text()


@pytest.mark.parametrize("function", [F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.rms_norm])
def test_torch_functions_conform(function: Any) -> None:
    report = conformance(function, quick=True)
    assert report.ok, report.text()


@pytest.mark.parametrize("name", ["BatchNorm", "InstanceNorm", "BatchInstanceNorm", "GroupNorm", "LayerNorm"])
def test_our_layers_conform(name: str) -> None:
    report = conformance(getattr(normlab.layers, name), quick=True)
    assert bugs(report) == set(), report.text()
    assert not [f for f in report.findings if f.cause == "loses-channels-last"]


# the layers of the others are those of the test before this one
@pytest.mark.parametrize(
    "spec", ["gn:groups=3", "torch-bn", *(pytest.param(s, marks=pytest.mark.slow) for s in ("bn", "in", "bin", "ln"))]
)
def test_our_norms_by_name_conform(spec: str) -> None:
    def build(channels: int) -> nn.Module:
        return normlab.make_norm(spec, channels)

    kind = {"bn": "batch", "torch-bn": "batch", "in": "instance", "bin": "batch-instance", "ln": "layer"}.get(
        spec, "group"
    )
    report = conformance(build, kind=kind, quick=True)
    only = {f for f in bugs(report) if not f.startswith("layouts.other-sizes")}  # 3 groups do not divide 7 channels
    assert only == set(), report.text()


class KerasLike(nn.Module):
    """Batch norm as Keras does it: momentum 0.99 on the old value, eps 1e-3, biased running variance."""

    def __init__(self, num_features: int, eps: float = 1e-3, momentum: float = 0.99) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.gamma, self.beta = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("moving_mean", torch.zeros(num_features))
        self.register_buffer("moving_variance", torch.ones(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        if x.shape[1] != self.gamma.numel():
            raise ValueError("wrong channels")
        mean, var = self.moving_mean, self.moving_variance
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.training and x.numel():
            mean, var = wide.mean(axes), wide.var(axes, unbiased=False)
            with torch.no_grad():
                self.moving_mean.lerp_(mean.to(self.moving_mean.dtype), 1 - self.momentum)
                self.moving_variance.lerp_(var.to(self.moving_variance.dtype), 1 - self.momentum)
        xhat = (wide - mean.reshape(shape)) / (var.reshape(shape) + self.eps).sqrt()
        return (self.gamma.reshape(shape) * xhat + self.beta.reshape(shape)).to(x.dtype)


def test_another_dialect_is_told_by_probing() -> None:
    report = conformance(KerasLike, kind="batch", quick=True)
    assert report.ok, report.text()
    assert report.dialect["held to"].startswith("keras")
    assert report.dialect["momentum"] == "0.01 on the new batch, 0.99 on the old"
    assert report.dialect["running variance"] == "biased (n)"
    assert report.dialect["eps"] == "0.001 inside the root"


def test_a_named_dialect_is_held_to() -> None:
    report = conformance(nn.BatchNorm2d, dialect="flax", quick=True)
    assert report.cause == "momentum-swapped"
    report = conformance(nn.BatchNorm2d(6, momentum=0.9), dialect="onnx", quick=True)
    assert report.cause == "momentum-swapped"


@pytest.mark.slow
def test_the_full_check_of_a_stock_layer() -> None:
    report = conformance(nn.BatchNorm2d)
    assert report.ok, report.text()
    assert {"state.compile", "state.export", "speed.beside"} <= {f.check for f in report.findings}
    speed = next(f for f in report.findings if f.check == "speed.beside")
    assert {"this_layer", "torch", "normlab"} <= set(speed.measured)
