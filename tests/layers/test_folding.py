"""Batch norm inside the layer before it: the same outputs in evaluation, with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import normlab
from normlab.errors import UsageError
from normlab.layers import norms
from normlab.models import build_model


def settled(model: nn.Module, *shape: int) -> nn.Module:
    """The model with statistics, weights and biases of its own, in evaluation mode."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0)
    model.train()
    for _ in range(3):
        model(2 * torch.randn(*shape) + 1)
    return model.eval()


def count(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


LAYERS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "1-D": (lambda: [nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)], (5, 3, 9)),
    "groups": (lambda: [nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)], (5, 4, 9, 9)),
    "3-D": (lambda: [nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6)], (5, 2, 4, 4, 4)),
    "transposed": (lambda: [nn.ConvTranspose2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)], (5, 3, 4, 4)),
    "linear": (lambda: [nn.Linear(3, 6), nn.BatchNorm1d(6)], (5, 3)),
    "no affine": (lambda: [nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, affine=False)], (5, 3)),
    "ours": (lambda: [nn.Conv2d(3, 6, 3), norms.BatchNorm(6, eps=0.1)], (5, 3, 9, 9)),
    "its activation": (lambda: [nn.Conv2d(3, 6, 3), norms.BatchNorm(6, act="relu")], (5, 3, 9, 9)),
    "ghost": (lambda: [nn.Conv2d(3, 6, 3), normlab.make_norm("ghost", 6)], (5, 3, 9, 9)),
    "frozen": (lambda: [nn.Conv2d(3, 6, 3), normlab.make_norm("frozen", 6)], (5, 3, 9, 9)),
}


@pytest.mark.parametrize("what", LAYERS)
def test_folded_layers_compute_the_same(what: str) -> None:
    make, shape = LAYERS[what]
    model = settled(nn.Sequential(*make(), nn.Tanh()), *shape)
    x = torch.randn(*shape)
    expected = model(x)
    normlab.fold(model, x)
    assert count(model) == 0
    assert normlab.fold_report(model).folded == {"1": "0"}
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["bn", "torch-bn", "ghost", "brn"])
def test_a_residual_network_is_folded_whole(norm: str) -> None:
    model = settled(build_model("resnet8:width=8", norm, num_classes=4, in_channels=3, seed=0), 4, 3, 8, 8)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        normlab.fold(model, x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    report = normlab.fold_report(model)
    assert (count(model), report.left) == (0, {})
    assert report.error < 1e-5
    assert "9 norms are folded, 0 left alone" in str(report)


class Two(nn.Module):
    """A convolution whose output is normalized and used besides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), how

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        assert y.shape == x.shape  # which is no use of it
        return {
            "added": lambda: self.bn(y) + y,
            "returned": lambda: (self.bn(y), y),
            "normalized twice": lambda: self.bn(y) + self.bn(y),
            "through a function": lambda: self.bn(y.relu()),
            "convolved twice": lambda: self.bn(self.conv(y)),
        }[self.how]()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("added", "something else uses"),
        ("returned", "something else uses"),
        ("normalized twice", "it is called 2 times"),
        ("through a function", "no output of a convolution"),
        ("convolved twice", "the layer before it is called 2 times"),
    ],
)
def test_a_norm_is_left_where_folding_would_change_more(how: str, why: str) -> None:
    model = (
        nn.Sequential(Two(how)) if how == "returned" else nn.Sequential(Two(how), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    )
    if how == "returned":
        with pytest.raises(UsageError, match=why):
            normlab.fold(model, torch.randn(2, 3, 4, 4))
        return
    normlab.fold(settled(model, 4, 3, 4, 4), torch.randn(2, 3, 4, 4))
    report = normlab.fold_report(model)
    assert report.folded == {"2": "1"}
    assert why in report.left["0.bn"]
    assert why in str(report)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: [nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)], "no batch norm"),
        (lambda: [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], "no running statistics"),
        (lambda: [nn.Conv2d(3, 4, 1), normlab.make_norm("bin", 4)], "no batch norm"),
        (lambda: [weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)], "computed from others"),
        (lambda: [nn.ConvTranspose2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)], "transposed convolution in groups"),
        (lambda: [nn.Unflatten(2, (2, 2)), nn.Flatten(2), nn.Linear(4, 3), nn.BatchNorm1d(3)], "no output of"),
    ],
)
def test_a_model_with_nothing_to_fold_is_refused(make: Callable[[], list[nn.Module]], why: str) -> None:
    model = nn.Sequential(*make())
    shape = (2, 3, 4) if isinstance(model[0], nn.Unflatten) else (2, model[0].in_channels, 4, 4)
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=why):
        normlab.fold(model, torch.randn(*shape))
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert model.training
    with pytest.raises(UsageError, match="not folded"):
        normlab.fold_report(model)


class Standardizing(nn.Conv2d):
    """Scales its weight itself, so that what is put into it has no effect."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return self._conv_forward(input, weight, self.bias)


class Padding(nn.Conv2d):
    """Pads its input, as timm's convolutions do."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(nn.functional.pad(input, (0, 1, 0, 1)), self.weight, self.bias)


# a norm behind a convolution that standardizes its weight was folded, and the outputs were others
def test_a_convolution_with_a_forward_pass_of_its_own_is_tried() -> None:
    layers = [Standardizing(3, 4, 2), nn.BatchNorm2d(4), Padding(4, 5, 2), nn.BatchNorm2d(5)]
    model, x = settled(nn.Sequential(*layers), 4, 3, 6, 6), torch.randn(2, 3, 6, 6)
    expected = model(x)
    report = normlab.fold_report(normlab.fold(model, x))
    assert report.folded == {"3": "2"}
    assert "the Standardizing before it does more than its base" in report.left["1"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


# whoever watched a layer saw other outputs after folding
def test_a_layer_that_is_watched_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="a hook is on the layer before it"):
        normlab.fold(model, torch.randn(2, 3, 4, 4))


class Peeking(nn.Module):
    """A convolution and a norm whose call, or another use of the convolution, is out of the ordinary."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 1), norms.BatchNorm(3), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "mask":
            z: Tensor = self.norm(y, mask=torch.ones(len(x), *x.shape[2:], dtype=torch.bool))
            return z
        return self.norm(y) + y.data.mean() if self.how == "data" else self.norm(residual=y, input=x)


# `.data` was no use of an output, an input given by its name was the first argument named, and a mask failed halfway
@pytest.mark.parametrize(
    ("how", "why"),
    [("mask", "it is given a mask"), ("data", "something else uses"), ("names", "its input is no output")],
)
def test_uses_out_of_the_ordinary(how: str, why: str) -> None:
    model, x = settled(Peeking(how), 4, 3, 4, 4), torch.randn(2, 3, 4, 4)
    with pytest.raises(UsageError, match=why):
        normlab.fold(model, x)


def test_shared_weights_are_left() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    )
    model[2].weight = model[0].weight
    normlab.fold(settled(model, 4, 3, 4, 4), torch.randn(2, 3, 4, 4))
    assert "shares a parameter" in normlab.fold_report(model).left["1"]
