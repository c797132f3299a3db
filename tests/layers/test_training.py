"""Networks train the same with our layers as with torch's; statistics over many steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normlab
from tests.layers.parity import BACKENDS, backend


def losses(norm: str, norm_backend: str = "numba_cpu", channels_last: bool = False, steps: int = 50) -> Tensor:
    """The loss curve of a small convolutional network, from the same start on the same batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        normlab.make_norm(norm, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        normlab.make_norm(norm, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    images, labels = torch.randn(256, 3, 12, 12) * 2 + 1, torch.randint(0, 4, (256,))
    images += labels.reshape(-1, 1, 1, 1) * 0.3
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(normlab.layers.parameter_groups(model, lr=0.05, weight_decay=1e-4), momentum=0.9)
    curve = []
    with backend(norm_backend):
        for step in range(steps):
            part = slice(32 * (step % 8), 32 * (step % 8) + 32)
            loss = F.cross_entropy(model(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            normlab.layers.constrain(model)
            curve.append(loss.detach())
        with torch.no_grad():  # and in evaluation, on the running statistics
            curve.append(F.cross_entropy(model.eval()(images), labels))
    return torch.stack(curve)


@pytest.fixture(scope="module")
def stock() -> Tensor:
    return losses("torch-bn")


@pytest.mark.parametrize(
    ("backend_name", "channels_last"), [("numba_cpu", False), ("numba_cpu", True), ("reference", False)]
)
def test_batch_norm_trains_as_torchs(stock: Tensor, backend_name: str, channels_last: bool) -> None:
    assert stock[-2] < 0.8 * stock[0], "the network learns"
    torch.testing.assert_close(losses("bn", backend_name, channels_last), stock, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["in", "bin", "ln", "gn"])
def test_the_others_learn_on_either_backend(norm: str) -> None:
    fast, slow = (losses(norm, name) for name in BACKENDS)
    assert fast[-2] < fast[0]
    torch.testing.assert_close(fast[:20], slow[:20], rtol=1e-3, atol=0)
    # from then on the last bits, which the backends round differently, have grown through the network's kinks
    torch.testing.assert_close(fast, slow, rtol=2e-2, atol=0)


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_running_statistics_of_many_batches(momentum: float | None) -> None:
    """50 batches of changing statistics and sizes, then evaluation."""
    ours, stock = normlab.make_norm("bn", 4, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
    for i in range(50):
        x = torch.randn(2 + i % 7, 4, 3, 3) * (1 + i % 3) + i / 10
        torch.testing.assert_close(ours(x), stock(x))
    for name, v in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], v)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))


def test_momentum_zero_keeps_the_statistics() -> None:
    layer = normlab.make_norm("bn", 4, momentum=0.0)
    layer(torch.randn(8, 4) * 3 + 2)
    assert layer.running_mean.tolist() == [0] * 4
    assert layer.running_var.tolist() == [1] * 4


def test_evaluation_does_not_touch_the_statistics() -> None:
    layer = normlab.make_norm("bin", 4).eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(torch.randn(8, 4, 3, 3) * 3 + 2)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_reset() -> None:
    layer = normlab.make_norm("bn", 4)
    layer(torch.randn(8, 4) * 3 + 2)
    layer.reset_running_stats()
    fresh = normlab.make_norm("bn", 4)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in layer.state_dict().items())


def test_statistics_in_no_grad_mode() -> None:
    """Statistics are collected without gradients too, as torch does."""
    layer = normlab.make_norm("bn", 4)
    with torch.no_grad():
        layer(torch.randn(8, 4) + 5)
    assert (layer.running_mean > 0.2).all()
