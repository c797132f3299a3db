"""Pretrained weights in networks whose norms and classes may be others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.models import build_model
from normlab.models.given import give
from normlab.models.weights import read_weights


class Net(nn.Module):
    """As somebody else wrote and trained it."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained() -> Net:
    torch.manual_seed(1)
    net = Net()
    nn.init.uniform_(net.bn.weight)
    nn.init.uniform_(net.bn.running_mean)
    return net


@pytest.fixture(scope="module")
def file(trained: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(trained.state_dict(), path)
    return path


def made(
    file: Path, norm: str = "keep", classes: int = 10, channels: int = 3, model: Any = Net
) -> tuple[Any, list[str]]:
    said: list[str] = []
    name = model if isinstance(model, str) else give(model)
    net = build_model(
        name, norm, num_classes=classes, in_channels=channels, seed=0, weights=str(file), say=said.append
    )  # fmt: skip
    return net, said


def test_the_same_network_is_the_trained_one(file: Path, trained: Net) -> None:
    x = torch.randn(2, 3, 6, 6)
    net, said = made(file)
    assert said == []
    assert torch.equal(net.eval()(x), trained.eval()(x))
    frozen, _ = made(file, "frozen")
    assert torch.equal(frozen.train()(x), trained.eval()(x))


def test_other_norms_take_what_they_have_names_for(file: Path, trained: Net) -> None:
    net, said = made(file, "gn:groups=2")
    assert torch.equal(net.conv.weight, trained.conv.weight)
    assert torch.equal(net.bn.weight, trained.bn.weight)
    assert said == []


def with_norm(norm: Any, num_classes: int, in_channels: int) -> nn.Module:
    net = Net(num_classes, in_channels)
    net.bn = norm(8)
    return net


@pytest.mark.parametrize("norm", ["bn", "gn:groups=2", "none", "bin"])
def test_a_factory_that_takes_a_norm(norm: str, file: Path, trained: Net) -> None:
    net, said = made(file, norm, model=with_norm)
    assert torch.equal(net.conv.weight, trained.conv.weight)
    assert bool(said) == (norm == "bin")  # whose gate no file of batch norm has
    if norm == "bn":
        assert torch.equal(net.bn.running_mean, trained.bn.running_mean)


def test_a_classifier_of_another_size_starts_afresh(file: Path, trained: Net) -> None:
    net, said = made(file, classes=5)
    assert net.head.weight.shape == (5, 8)
    assert said == [f"head starts afresh: --weights {file} has 10 classes, the data 5"]
    assert torch.equal(net.conv.weight, trained.conv.weight)
    assert torch.equal(net.head.weight, made(file, classes=5)[0].head.weight), "as the seed has it"


def test_a_file_without_a_classifier(trained: Net, tmp_path: Path) -> None:
    save_file(
        {k: v for k, v in trained.state_dict().items() if not k.startswith("head")}, tmp_path / "body.safetensors"
    )
    assert "head starts afresh" in made(tmp_path / "body.safetensors")[1][0]


# both were left out without a word
def test_a_bias_that_is_missing_and_a_norm_of_another_size_are_told(trained: Net, tmp_path: Path) -> None:
    held = {**trained.state_dict(), "bn.weight": torch.ones(5)}
    del held["bn.bias"], held["head.bias"]
    save_file(held, tmp_path / "net.safetensors")
    said = "\n".join(made(tmp_path / "net.safetensors")[1])
    assert "bn.weight starts afresh: " in said
    assert "1 tensors of norms start afresh" in said
    assert "1 biases start afresh" in said


def test_gray_images_meet_the_sum_of_the_colours(file: Path, trained: Net) -> None:
    net, (said,) = made(file, channels=1)
    assert "conv.weight is summed over its colours" in said
    gray = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(net.eval()(gray), trained.eval()(gray.expand(2, 3, 6, 6)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_checkpoints_of_torch(wrap: Any, trained: Net, tmp_path: Path) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "net.pth")
    assert torch.equal(made(tmp_path / "net.pth")[0].conv.weight, trained.conv.weight)


def test_the_built_in_networks(tmp_path: Path) -> None:
    whole = build_model("resnet8:width=4", "bn", num_classes=3, in_channels=3, seed=0)
    save_file(whole.state_dict(), tmp_path / "r.safetensors")
    for norm in ("bn", "gn", "none"):
        net, _ = made(tmp_path / "r.safetensors", norm, 3, model="resnet8:width=4")
        assert torch.equal(net.stem[0].weight, whole.stem[0].weight)
    with pytest.raises(UsageError, match=r"does not fit the model .* of other shapes: blocks.0.conv1.weight"):
        made(tmp_path / "r.safetensors", "bn", 3, model="resnet8:width=8")
    with pytest.raises(UsageError, match=r"missing in the file: blocks.3.conv1.weight"):
        made(tmp_path / "r.safetensors", "bn", 3, model="resnet14:width=4")


def test_what_does_not_fit_is_named(file: Path) -> None:
    class Other(Net):
        def __init__(self, num_classes: int, in_channels: int) -> None:
            super().__init__(num_classes, in_channels)
            self.first = self.conv
            del self.conv

    with pytest.raises(UsageError, match=r"1 missing in the file: first.weight; 1 unknown to it: conv.weight"):
        made(file, model=Other)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("gone.pth", None, "no such file"),
        ("net.onnx", b"x", r"ends in .safetensors, .pt or .pth"),
        ("net.safetensors", b"x" * 40, "cannot be read"),
        ("net.pth", b"x" * 40, "--weights"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(name: str, content: bytes | None, word: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=word):
        read_weights(tmp_path / name)


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "whole.pt")
    with pytest.raises(UsageError, match="objects besides tensors"):
        read_weights(tmp_path / "whole.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="it holds list; expected a state_dict"):
        read_weights(tmp_path / "list.pt")
