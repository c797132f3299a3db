"""A network that is converted in the middle of its training: optimizer and schedule go on; ghost norms are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.layers import GhostBatchNorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def images() -> Tensor:
    return torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimizer.zero_grad()
    model(images()).square().mean().backward()
    optimizer.step()
    schedule.step()


@pytest.mark.parametrize("to", ["gn", "frn", "ln", "bin", "ghost:size=4"])
def test_the_optimizer_goes_on(to: str) -> None:
    """With the moments that it has of weight and bias, and at the rate where its schedule is."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step(model, optimizer, schedule)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    normlab.convert(model, to, images())
    assert [id(p) for p in (model[1].weight, model[1].bias)] == held[2:4]
    before = model[1].weight.detach().clone()
    step(model, optimizer, schedule)
    assert optimizer.state[model[1].weight]["step"] == 2
    assert not torch.equal(model[1].weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.025
    again = torch.optim.AdamW(network().parameters(), lr=0.1)
    again.load_state_dict(optimizer.state_dict())


def test_ghost_norms_evaluate_as_batch_norm_did() -> None:
    model = network()
    for _ in range(3):
        model(images())
    expected = copy.deepcopy(model).eval()(images())
    normlab.convert(model, "ghost:size=4", images())
    assert isinstance(model[1], GhostBatchNorm)
    torch.testing.assert_close(model.eval()(images()), expected)
    report = normlab.convert_report(model)
    assert report.error == pytest.approx(0, abs=1e-9)
    parts = model.train()(images())
    assert not torch.allclose(parts, expected, atol=1e-3)
    normlab.revert(model)
    torch.testing.assert_close(model.eval()(images()), expected)
