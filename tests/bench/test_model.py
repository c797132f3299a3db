"""A user's model brings its shapes: what follows a normalization belongs to it, and what is not timed is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normlab
from normlab.bench import model as models
from normlab.bench.work import Work
from normlab.errors import UsageError

INPUT = (2, 8, 4, 4)


class Net(nn.Module):
    """Every way in which a normalization can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.then_relu, self.then_both = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8)
        self.again = nn.BatchNorm2d(8)
        self.ours = normlab.make_norm("in", 8, act="silu")
        self.row = nn.LayerNorm(8)
        self.local = nn.LocalResponseNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(self.plain(x))
        y = F.relu(self.then_relu(y))
        y = F.relu(self.then_both(y) + x)
        y = F.relu(self.again(y) + x)
        y = self.ours(y, y)
        y = self.local(y)
        return self.row(y.mean((2, 3)))


def test_a_model_is_watched() -> None:
    works, others = models.works_of(Net(), INPUT, "channels_first", "float32", "cpu")
    assert set(works) == {
        Work("bn", INPUT),
        Work("gn:groups=2", INPUT, act="relu"),
        Work("bn", INPUT, residual=True, act="relu", count=2),
        Work("in", INPUT, residual=True, act="silu"),
        Work("layernorm", (2, 8)),
    }
    assert others == {"LocalResponseNorm": 1}


def test_layouts_are_those_that_arrive() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    (work,), _ = models.works_of(net, INPUT, "channels_last", "float32", "cpu")
    assert work == Work("bn", INPUT, "channels_last")


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "factories_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())\n"
        "def compared(norm, num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), norm(8), nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def broken(): raise KeyError('weights')\n"
        "def number(): return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("factory", ["make", "compared"])
def test_a_factory_is_called_as_it_asks_to_be(factories: str, factory: str) -> None:
    net = models.load(f"{factories}:{factory}", (2, 3, 8, 8))
    works, _ = models.works_of(net, (2, 3, 8, 8), "channels_first", "float32", "cpu")
    assert [(w.norm, w.shape) for w in works] == [("bn", (2, 8, 6, 6))]


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("{}:broken", (2, 3, 8, 8), ["the factory raised KeyError", "weights"]),
        ("{}:number", (2, 3, 8, 8), ["returned int", "torch.nn.Module"]),
        ("{}:missing", (2, 3, 8, 8), ["missing"]),
        ("no_such_module:make", (2, 3, 8, 8), ["no_such_module"]),
        ("resnet14", (2, 3, 8), ["four sizes", "(2, 3, 8)"]),
    ],
)
def test_what_is_no_model_is_said(factories: str, spec: str, shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        models.load(spec.format(factories), shape)
    for word in words:
        assert word in str(caught.value)


def test_an_input_that_the_model_does_not_take_is_said() -> None:
    with pytest.raises(UsageError, match=r"'mine' does not take an --input of \(2, 5, 4, 4\): RuntimeError"):
        models.works_of(nn.Conv2d(8, 8, 3), (2, 5, 4, 4), "channels_first", "float32", "cpu", "mine")
