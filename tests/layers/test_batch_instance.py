"""Batch-instance norm: its two ends, its gate's bounds, learning rate and decay, the authors' checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normlab
from normlab.layers.norms import BatchInstanceNorm, constrain, parameter_groups


def test_gate_starts_at_one() -> None:
    layer = BatchInstanceNorm(4)
    assert torch.equal(layer.rho, torch.ones(4))
    x = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, training=True))


def test_gate_at_zero_is_instance_norm() -> None:
    layer = BatchInstanceNorm(4)
    nn.init.zeros_(layer.rho)
    x = torch.randn(5, 4, 3, 3) * 2 + 1
    torch.testing.assert_close(layer(x), F.instance_norm(x))


def test_gates_are_per_channel() -> None:
    layer = BatchInstanceNorm(2)
    with torch.no_grad():
        layer.rho.copy_(torch.tensor([0.0, 1.0]))
    x = torch.randn(5, 2, 3, 3) + torch.arange(5.0).reshape(5, 1, 1, 1)
    y = layer(x)
    torch.testing.assert_close(y[:, :1], F.instance_norm(x[:, :1]))
    torch.testing.assert_close(y[:, 1:], F.batch_norm(x[:, 1:], None, None, training=True))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), BatchInstanceNorm(4), normlab.make_norm("gn", 4), nn.Conv2d(4, 2, 3))


def test_parameter_groups() -> None:
    model = network()
    plain, gates = parameter_groups(model, lr=0.1, weight_decay=1e-4)
    assert plain["lr"] == 0.1
    assert plain["weight_decay"] == 1e-4
    assert gates == {"params": [model[1].rho], "lr": 1.0, "weight_decay": 0.0}
    listed = [id(p) for group in (plain, gates) for p in group["params"]]
    assert sorted(listed) == sorted(map(id, model.parameters())), "every parameter once"


def test_parameter_groups_without_gates() -> None:
    (plain,) = parameter_groups(nn.Linear(2, 2), lr=0.1)
    assert len(plain["params"]) == 2
    assert plain["weight_decay"] == 0.0


def test_constrain() -> None:
    model = network()
    with torch.no_grad():
        model[1].rho.copy_(torch.tensor([-0.5, 0.25, 1.0, 7.0]))
        model[1].weight.fill_(-3)
    constrain(model)
    assert model[1].rho.tolist() == [0.0, 0.25, 1.0, 1.0]
    assert (model[1].weight == -3).all(), "only bounded parameters are clamped"
    assert model[1].rho.requires_grad


def test_gate_learns_ten_times_as_fast_without_decay() -> None:
    model = network()
    with torch.no_grad():
        model[1].rho.fill_(0.5)
    optimizer = torch.optim.SGD(parameter_groups(model, lr=1e-3, weight_decay=10.0))
    model(torch.randn(6, 1, 9, 9)).square().sum().backward()
    gradient = model[1].rho.grad.clone()
    optimizer.step()
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(model[1].rho, 0.5 - 1e-2 * gradient)


@pytest.mark.parametrize("prefix", ["", "1."])
def test_the_authors_name_of_the_gate(prefix: str) -> None:
    model = BatchInstanceNorm(4) if not prefix else network()
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    theirs = {k.replace("rho", "gate"): v for k, v in state.items()}
    names = list(theirs)
    model.load_state_dict(theirs)
    assert torch.equal(model.state_dict()[f"{prefix}rho"], state[f"{prefix}rho"])
    assert list(theirs) == names, "the checkpoint itself is left alone"
