"""The way back to the layers that a model had, and to torch's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normlab
from normlab.layers import norms as layers
from tests.layers.test_swap import MODELS, OURS, images, made, same, trained


@pytest.mark.parametrize("way", ["swapped", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, way: str) -> None:
    stock, x = made(name), images()
    model = copy.deepcopy(stock)
    model = normlab.swap_norms(model) if way == "swapped" else normlab.fuse_norms(model, x)
    hooked: list[str] = []
    for key, module in model.named_modules():
        if isinstance(module, OURS):
            module.register_forward_hook(lambda *_, key=key: hooked.append(key))
    modules = dict(model.named_modules())
    held = dict(model.named_parameters())
    assert normlab.restore_norms(model) is model
    assert {k: type(m) for k, m in model.named_modules()} == {k: type(m) for k, m in stock.named_modules()}
    assert all(m is modules[k] for k, m in model.named_modules())
    assert all(p is held[k] for k, p in model.named_parameters())
    assert list(model.state_dict()) == list(stock.state_dict())
    theirs = dict(stock.named_modules())
    for key, module in model.named_modules():
        assert vars(module).keys() == vars(theirs[key]).keys(), key
    same(trained(model, x), trained(stock, x))
    assert hooked


class Ours(nn.Module):
    """Written with our layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.BatchNorm(6, act="relu")
        self.second = layers.GroupNorm(3, 6, act="leaky_relu:slope=0.2")
        self.third = layers.InstanceNorm(6, affine=True, track_running_stats=True)
        self.fourth = normlab.make_norm("ln", 6)
        self.fifth, self.sixth = layers.ChannelNorm(6), layers.LayerNorm(5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x), x)
        return self.sixth(self.fifth(self.fourth(self.third(y))))


def test_our_layers_become_torchs() -> None:
    torch.manual_seed(0)
    model, x = Ours().double(), torch.randn(4, 6, 5, 5, dtype=torch.float64)
    back = normlab.restore_norms(copy.deepcopy(model))
    assert not [m for m in back.modules() if isinstance(m, OURS)]
    assert list(back.state_dict()) == list(model.state_dict())
    same(trained(back, x), trained(model, x))
    again = copy.deepcopy(back)
    torch.testing.assert_close(again(x), back(x))


def test_what_torch_does_not_have_stays() -> None:
    model = nn.Sequential(layers.BatchInstanceNorm(3), layers.BatchNorm(3))
    with pytest.warns(UserWarning, match=r"torch has no such layer, so it stays: 0 \(BatchInstanceNorm"):
        normlab.restore_norms(model)
    assert isinstance(model[0], layers.BatchInstanceNorm)
    assert not isinstance(model[1], layers.Norm)


def test_a_restored_model_is_exported() -> None:
    """torch's tools that know torch's layers only."""
    model = normlab.restore_norms(normlab.fuse_norms(made("residual", torch.float32), images(torch.float32))).eval()
    x: Any = images(torch.float32)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    swapped = normlab.restore_norms(normlab.swap_norms(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))).eval()
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(swapped)
    assert torch.equal(scripted(x), swapped(x))


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: somebody's batch norm with an activation behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.behind = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(super().forward(x))


# the way back took out what had frozen the layer instead of what had swapped it, or both
@pytest.mark.parametrize("first", ["swap", "freeze", "written with ours"])
def test_frozen_layers_stay_frozen_on_the_way_back(first: str) -> None:
    ours, theirs = normlab.make_norm("bn", 3, act="relu"), nn.Sequential(nn.BatchNorm2d(3), Activated(3))
    model = nn.Sequential(ours) if first.startswith("written") else theirs
    x = torch.randn(8, 3, 4, 4) + 1
    model(x)
    expected, classes = copy.deepcopy(model).eval()(x), [type(m) for m in model]
    for step in (normlab.freeze, normlab.swap_norms) if first == "freeze" else (normlab.swap_norms, normlab.freeze):
        if not first.startswith("written") or step is normlab.freeze:
            step(model)
    for back in (model, normlab.restore_norms(copy.deepcopy(model))):
        torch.testing.assert_close(back.train()(x), expected)
        torch.testing.assert_close(copy.deepcopy(back)(x), expected)
        assert not any(m.training for m in back)
        normlab.unfreeze(back).train()
        assert not torch.allclose(back(x), expected)
    if not first.startswith("written"):
        assert [type(m) for m in normlab.restore_norms(model)] == classes


class Doubled(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return 2 * v


# the class that torch had put before the layer's was lost, and with it the weight; or torch took off ours
@pytest.mark.parametrize("then", ["restore", "freeze", "unfreeze"])
@pytest.mark.parametrize("first", ["swap", "freeze"])
def test_parametrizations_come_and_go(first: str, then: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)), nn.LayerNorm(4))
    x = torch.randn(8, 3, 4, 4) + 1
    expected = copy.deepcopy(model).eval()(x)
    {"swap": normlab.swap_norms, "freeze": normlab.freeze}[first](model).eval()
    for layer in (model[0][0], model[1]):
        parametrize.register_parametrization(layer, "weight", Doubled())
    {"restore": normlab.restore_norms, "freeze": normlab.freeze, "unfreeze": normlab.unfreeze}[then](model).eval()
    assert not torch.allclose(copy.deepcopy(model)(x), expected)
    for layer in (model[0][0], model[1]):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    torch.testing.assert_close(normlab.restore_norms(model)(x), expected)
    assert type(normlab.unfreeze(model)[0][0]) is nn.BatchNorm2d
    parametrize.register_parametrization(model[0][0], "weight", Doubled())
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(normlab.freeze(model))
