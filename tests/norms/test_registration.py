"""A norm of one's own, as a function or a class, works wherever the built-in ones do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import normlab
from normlab.errors import UsageError
from normlab.layers.norms import constrain, parameter_groups
from normlab.norms import family as norms
from normlab.norms.family import AFFINE, Learned, register_norm
from normlab.norms.grid import Affine, Moments, rsqrt, standardize


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registrations last for a test."""
    monkeypatch.setattr(norms, "_REGISTRY", dict(norms._REGISTRY))
    normlab.kernels.stages.recipe.cache_clear()
    yield
    normlab.kernels.stages.recipe.cache_clear()


def test_built_in_names() -> None:
    assert normlab.norm_names()[:9] == ("bn", "in", "bin", "ln", "gn", "none", "torch-bn", "rms", "frn")


def test_function() -> None:
    @register_norm("rms-of-planes", paper="Zhang & Sennrich 2019")
    def root_mean_square(m: Moments, p: Any) -> Affine:
        """y = weight * x / sqrt(mean_s(x^2) + eps) + bias"""
        return Affine(p.weight * rsqrt(m.var + m.mean**2 + p.eps), 0.0, p.bias)

    assert normlab.norm_names()[-1] == "rms-of-planes"
    entry = norms.describe("rms-of-planes")
    assert (entry.name, entry.title, entry.paper) == ("rms-of-planes", "rms-of-planes", "Zhang & Sennrich 2019")
    assert entry.formula == "y = weight * x / sqrt(mean_s(x^2) + eps) + bias"
    assert (
        root_mean_square(Moments(lambda: (0.0, 1.0), (1, 1), 1), norms.SimpleNamespace(weight=2, bias=3, eps=3)).scale
        == 1
    )
    layer = normlab.make_norm("rms-of-planes", 4, eps=1e-3)
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    want = x / torch.sqrt(x.square().mean((2, 3), keepdim=True) + 1e-3)
    torch.testing.assert_close(layer(x), want)
    dy = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(torch.autograd.grad(layer(x), x, dy), torch.autograd.grad(want, x, dy))
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("name", "over", "eps"), [("rms", (1, 2, 3), 1e-5), ("frn", (2, 3), 1e-6), ("rms", (1, 2, 3), 0.5)]
)
def test_divided_by_a_root_mean_square(name: str, over: tuple[int, ...], eps: float) -> None:
    options = {} if eps < 0.1 else {"eps": eps}
    layer = normlab.make_norm(name, 4, dtype=torch.float64, **options)
    assert layer.eps == eps
    assert list(layer.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        layer.weight.uniform_()
        layer.bias.uniform_()
    x = 0.01 * torch.randn(3, 4, 5, 6, dtype=torch.float64) + 3e-3
    x.requires_grad_()
    rows = (layer.weight.reshape(4, 1, 1), layer.bias.reshape(4, 1, 1))
    want = rows[0] * x / torch.sqrt(x.square().mean(over, keepdim=True) + eps) + rows[1]
    dy, leaves = torch.randn_like(want), [x, layer.weight, layer.bias]
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(torch.autograd.grad(layer(x), leaves, dy), torch.autograd.grad(want, leaves, dy))


def test_a_study_that_names_no_norms_does_not_grow() -> None:
    from normlab.study.axes import DEFAULT_NORMS

    assert DEFAULT_NORMS == ("bn", "gn", "ln", "in", "none")


def test_parameters_are_added_to_weight_and_bias() -> None:
    """Bug: `parameters={"gate": 1.0}` replaced weight and bias: AttributeError at the first call."""
    register_norm("gated", parameters={"gate": 2.0})(lambda m, p: p.gate * standardize(m, p))
    register_norm("alone", parameters={"gate": 2.0}, affine=False)(lambda m, p: Affine(p.gate * rsqrt(m.var + p.eps)))
    x = torch.randn(2, 3, 5)
    layer = normlab.make_norm("gated", 3)
    assert list(layer.state_dict()) == ["weight", "bias", "gate"]
    torch.testing.assert_close(layer(x), 2 * normlab.make_norm("in", 3)(x))
    assert list(normlab.make_norm("alone", 3).state_dict()) == ["gate"]
    assert normlab.make_norm("alone", 3)(x).shape == x.shape
    assert normlab.make_norm("gated", 3, affine=False)(x).shape == x.shape


def test_options() -> None:
    seen = []

    @register_norm("mine")
    def mine(m: Moments, p: Any, *, power: float = 0.5, parts: Any = lambda channels: channels // 2) -> Affine:
        seen.append((power, parts))
        return standardize(m.pool("c", parts), p)

    x = torch.randn(2, 8, 3)
    normlab.make_norm("mine", 8)(x)
    normlab.make_norm("mine:power=0.25", 8)(x)
    normlab.make_norm("mine:parts=2", 8, power=1)(x)
    assert {(0.5, 4), (0.25, 4), (1, 2)} == set(seen)
    with pytest.raises(UsageError, match="norm 'mine' has no option 'prats'; its options: power, parts"):
        normlab.make_norm("mine:prats=2", 8)


def test_learned_parameters() -> None:
    gate = Learned(0.5, per_channel=False, bounds=(0.25, 0.75), lr_scale=3.0, decay=False)

    @register_norm("mix", parameters={**AFFINE, "gate": gate, "power": 2})
    def mix(m: Moments, p: Any) -> Affine:
        return p.gate * standardize(m, p) + (1 - p.gate) * standardize(m.pool("c"), p)

    layer = normlab.make_norm("mix", 4)
    assert {k: (tuple(v.shape), v[0].item()) for k, v in layer.named_parameters()} == {
        "weight": ((4,), 1.0),
        "bias": ((4,), 0.0),
        "gate": ((1,), 0.5),
        "power": ((4,), 2.0),
    }
    plain, gates = parameter_groups(layer, lr=0.1, weight_decay=0.01)
    assert gates == {"params": [layer.gate], "lr": pytest.approx(0.3), "weight_decay": 0.0}
    assert len(plain["params"]) == 3
    layer(torch.randn(3, 4, 5)).square().sum().backward()
    assert layer.gate.grad.shape == (1,)
    assert layer.power.grad.abs().sum() == 0
    with torch.no_grad():
        layer.gate.fill_(9)
    constrain(layer)
    assert layer.gate.item() == 0.75


@pytest.mark.parametrize("first", ["n", "c"])
def test_running_statistics(first: str) -> None:
    """Whichever is pooled first, evaluation uses running averages of the pooling over samples."""

    def pooled_twice(m: Moments, p: Any) -> Affine:
        return standardize(m.pool("n").pool("c", 2) if first == "n" else m.pool("c", 2).pool("n"), p)

    register_norm("batch-group", running=True)(pooled_twice)
    layer = normlab.make_norm("batch-group", 4)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for _ in range(60):
        x = torch.randn(20, 4, 6) * 2 + torch.tensor([1.0, 1.0, 5.0, 5.0]).reshape(1, 4, 1)
        y = layer(x)
    torch.testing.assert_close(layer.running_mean, torch.tensor([1.0, 1.0, 5.0, 5.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(layer.eval()(x), y, atol=0.3, rtol=0.1)
    x[1:] = 0  # of no consequence to the first sample
    torch.testing.assert_close(layer(x)[0], y[0], atol=0.3, rtol=0.1)


@pytest.mark.parametrize("as_class", [True, False])
def test_module(as_class: bool) -> None:
    class Scale(nn.Module):
        def __init__(self, channels: int, start: float = 1.0) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((channels,), float(start)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.reshape(1, -1, *[1] * (x.dim() - 2))

    def factory(channels: int, **options: Any) -> nn.Module:
        return Scale(channels, **options)

    register_norm("scale", title="scaling")(Scale if as_class else factory)
    layer = normlab.make_norm("scale:start=3", 4)
    assert isinstance(layer, Scale)
    assert layer(torch.ones(1, 4)).tolist() == [[3.0] * 4]
    with pytest.raises(UsageError, match="scale"):
        normlab.make_norm("scale:stop=3", 4)


def test_in_a_network() -> None:
    register_norm("own")(lambda m, p: standardize(m.pool("c"), p))
    model = normlab.models.build_model("resnet8", "own", in_channels=1, num_classes=3)
    assert sum(isinstance(m, normlab.layers.Norm) for m in model.modules()) > 6
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", ["bn", "torch-bn"])
def test_name_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match=f"the name '{name}' is taken by .*; choose another"):
        register_norm(name)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "a=1", "-"])
def test_bad_name(name: str) -> None:
    with pytest.raises(ValueError, match="expected letters, digits, '-' and '_' only"):
        register_norm(name)


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), ("0.5", 0.5), ("1e-3", 1e-3), ("relu", "relu"), ("-2", -2), ("", "")]
)
def test_option_values(text: str, value: object) -> None:
    entry, options = norms.parse(f" gn:groups={text}")
    assert entry.name == "gn"
    assert options == {"groups": value}
    assert type(options["groups"]) is type(value)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 1), (4, 1), (8, 2), (16, 4), (32, 8), (64, 16), (256, 32), (12, 3), (20, 5), (22, 2)],
)
def test_default_groups(channels: int, groups: int) -> None:
    """channels / 4 in small networks, at most 32, and always a divisor."""
    assert norms.default_groups(channels) == groups
    assert normlab.make_norm("gn", channels).num_groups == groups


# Bug: an option without a default was refused as one that the layer does not have.
def test_an_option_that_must_be_given() -> None:
    @register_norm("scaled")
    class Scaled(nn.LayerNorm):
        def __init__(self, channels: int, width: int) -> None:
            super().__init__(channels * width)

    assert normlab.make_norm("scaled:width=2", 8).normalized_shape == (16,)
    with pytest.raises(UsageError, match="width"):
        normlab.make_norm("scaled", 8)
    with pytest.raises(UsageError, match="no option 'height'"):
        normlab.make_norm("scaled:width=2:height=3", 8)
