from __future__ import annotations

import pytest
import torch
from torch import nn

from normlab.errors import UsageError
from normlab.explain.batch_statistics import recomputed, statistics_layers, three_ways
from normlab.models.residual import build_model


@pytest.fixture(params=["bn", "torch-bn"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_model("resnet8", request.param, num_classes=3, in_channels=1, seed=0)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_recomputed_statistics_are_those_of_the_data(model: nn.Module) -> None:
    batches = list(images(64, 0).split(16))
    fresh = recomputed(model, batches)
    conv, norm = fresh.stem[0], fresh.stem[1]
    planes = torch.stack([conv(batch) for batch in batches])
    torch.testing.assert_close(norm.running_mean, planes.mean(dim=(0, 1, 3, 4)).detach(), rtol=1e-4, atol=1e-5)
    variances = planes.transpose(1, 2).flatten(2).var(dim=2).mean(dim=0).detach()
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
    assert not fresh.training


def test_wrong_running_statistics_show_as_mismatch_and_small_batches_as_noise(model: nn.Module) -> None:
    train, labels = images(96, 1), torch.arange(96) % 3
    train += labels[:, None, None, None].float()  # something to learn
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(train), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in statistics_layers(model):
        layer.running_var.mul_(4)  # type: ignore[operator, union-attr]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = three_ways(model, lambda: [train], train, labels, batch_size=2)
    large = three_ways(model, lambda: [train], train, labels, batch_size=96)
    assert small.mismatch == large.mismatch > 0.01
    assert small.noise > 0.05
    assert abs(large.noise) < 0.01
    assert small.accuracy["recomputed"] > small.accuracy["batch"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_networks_without_running_statistics_are_refused() -> None:
    model = build_model("resnet8", "gn", num_classes=3, in_channels=1)
    with pytest.raises(UsageError, match="no running statistics"):
        three_ways(model, list, images(4, 0), torch.zeros(4, dtype=torch.long), 2)


def test_batches_of_one_are_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        three_ways(model, list, images(4, 0), torch.zeros(4, dtype=torch.long), 1)
