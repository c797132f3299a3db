"""Networks with norms of their own in a comparison: handed over, made without a `norm`, out of a library."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.errors import UsageError
from normlab.layers import BatchInstanceNorm, BatchNorm, GroupNorm
from normlab.models import build_model
from normlab.models.given import give
from normlab.models.replacing import takes_norm
from normlab.study.training.contract import check_contract
from tests.study.conftest import corner_set

SIZES = {"num_classes": 4, "in_channels": 1}


class Net(nn.Module):
    """As somebody else wrote it."""

    def __init__(self, num_classes: int = 4, in_channels: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_which_factories_take_a_norm() -> None:
    assert takes_norm(lambda norm, num_classes, in_channels: None)
    assert takes_norm(lambda n, k, c=3: None)
    assert takes_norm(lambda num_classes, norm: None)
    assert takes_norm(lambda *sizes: None)
    for other in (Net, lambda: None, lambda num_classes: None, lambda num_classes, in_channels, depth: None, Net()):
        assert not takes_norm(other)


@pytest.mark.parametrize("model", [Net, Net(), lambda: Net(), lambda num_classes, **sizes: Net(num_classes)])
def test_norms_are_replaced(model: object) -> None:
    name = give(model)
    for norm, kind in (("gn:groups=2", GroupNorm), ("bin", BatchInstanceNorm), ("torch-bn", nn.BatchNorm2d)):
        made = build_model(name, norm, seed=0, **SIZES)
        assert isinstance(made.bn, kind)
        assert not isinstance(build_model(name, "keep", **SIZES).bn, BatchNorm)
    assert isinstance(build_model(name, "none", **SIZES).bn, nn.Identity)
    assert not build_model(name, "frozen", **SIZES).train().bn.training


class Parts(Net):
    """A network that returns an object, as those of transformers do."""

    def forward(self, x: Tensor) -> SimpleNamespace:  # type: ignore[override]
        return SimpleNamespace(loss=None, logits=super().forward(x))


# an output of several parts was refused, though its logits are what is asked for
@pytest.mark.parametrize("model", [Parts, Parts()])
def test_of_an_output_of_several_parts_the_logits_are_taken(model: object) -> None:
    name = give(model)
    assert check_contract(name, ["gn"], corner_set()) == []
    made = build_model(name, "bn", **SIZES)
    assert made(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    assert made.state_dict().keys() == Net().state_dict().keys()


# "frozen" was known by that name alone: its alias put other layers in, and what came after the name was ignored
def test_frozen_by_any_name() -> None:
    for norm in ("frozen", "frozen-bn", "frozen+ws"):
        made = build_model(give(Net), norm, **SIZES).train()
        assert isinstance(made.bn, nn.BatchNorm2d)
        assert not made.bn.training
    with pytest.raises(UsageError, match="no option 'groups'"):
        build_model(give(Net), "frozen:groups=2", **SIZES)


# a network whose norms are all taken out was refused as one that has none
@pytest.mark.parametrize("norm", ["none", "frozen-bn", "ws", "keep"])
def test_the_contract_of_a_single_norm(norm: str) -> None:
    check_contract(give(Net), [norm], corner_set())


def test_a_network_that_was_handed_over_starts_from_its_weights() -> None:
    net = Net()
    made = build_model(give(net), "gn", seed=3, **SIZES)
    assert torch.equal(made.conv.weight, net.conv.weight)
    assert made.conv.weight is not net.conv.weight
    assert isinstance(net.bn, nn.BatchNorm2d)
    assert give(net) != give(Net())


def test_the_cells_of_a_factory_start_alike() -> None:
    one, other = (build_model(give(Net), norm, seed=3, **SIZES) for norm in ("gn", "bin"))
    assert torch.equal(one.conv.weight, other.conv.weight)
    assert torch.equal(one.head.weight, other.head.weight)


def test_a_network_of_timm() -> None:
    pytest.importorskip("torchvision")  # which timm imports
    pytest.importorskip("timm")
    made = build_model("timm:resnet10t", "gn:groups=4", num_classes=5, in_channels=1, seed=0)
    assert made(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    with pytest.raises(UsageError, match="resnet18"):
        build_model("timm:resnt18", "gn", **SIZES)


def test_keep_is_for_networks_with_norms_of_their_own() -> None:
    with pytest.raises(UsageError, match="norms of their own"):
        build_model("resnet8", "keep", **SIZES)


def test_a_comparison_of_ones_own_network(photographs: Path, tmp_path: Path) -> None:
    net = Net(2, 3)
    study = normlab.compare(
        photographs, ["keep", "frozen", "gn"], net, seeds=1, epochs=1, batch_size=16, lr=0.01, out=tmp_path / "own"
    )
    assert {cell["norm"]: cell["status"] for cell in study.results["cells"]} == dict.fromkeys(
        ("keep", "frozen", "gn"), "done"
    )
    for norm in ("keep", "frozen", "gn"):
        trained = study.trained(norm)
        assert trained.model().predict(photographs / "sky" / "0.png")
        again = normlab.load(trained.save(tmp_path / "a.safetensors"))
        expected = trained.model().predict(photographs / "leaf")
        assert again.model(Net(2, 3)).predict(photographs / "leaf") == expected


class Broken(Net):
    """With one fault, by name."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        if fault == "unused":
            self.extra = nn.Linear(3, 3)
        if fault == "no norm":
            self.bn = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return {  # type: ignore[return-value]
            "shape": y[:, :3], "tuple": (y,), "nan": y * torch.nan, "no gradient": y.detach(),
        }.get(self.fault, y)  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", ["(4, 3)", "(4, 4)"]),
        ("tuple", ["tuple", "logits"]),
        ("nan", ["nan", "loss"]),
        ("no gradient", ["gradient"]),
        ("unused", ["extra.weight", "requires_grad"]),
        ("no norm", ["no norm that could"]),
    ],
)
def test_the_contract_is_checked_before_anything_trains(fault: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_contract(give(Broken(fault)), ["gn"], corner_set())
    for word in words:
        assert word in str(caught.value)


def test_a_factory_that_ignores_its_norm_is_told() -> None:
    def ignoring(norm: object, num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    with pytest.raises(UsageError, match="no norm that could differ"):
        check_contract(give(ignoring), ["gn", "bn"], corner_set())

    def failing(norm: object, num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(norm(1), nn.Linear(3, num_classes))  # type: ignore[operator]

    with pytest.raises(UsageError, match=r"its forward pass raised RuntimeError for images \(4, 1, 8, 8\)"):
        check_contract(give(failing), ["gn"], corner_set())
