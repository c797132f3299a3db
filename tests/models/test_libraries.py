"""Networks of libraries by name, the libraries being stand-ins: whether they are installed is another matter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers import GroupNorm
from normlab.models import build_model
from normlab.models.names import check_model, is_foreign


class Net(nn.Module):
    """As torchvision makes them: for colour images."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


SOURCE = """
from tests.models.test_libraries import Net

def list_models(module=None):
    return ["small", "smaller"]

def get_model(name, weights=None, **config):
    return Net(**config)
"""


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of this name, in front of the one that may be installed."""
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text(SOURCE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what the test imports is forgotten after it
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.mark.usefixtures("torchvision")
def test_a_network_of_torchvision() -> None:
    for channels in (1, 3):
        made = build_model("torchvision:small", "gn:groups=2", num_classes=5, in_channels=channels, seed=0)
        assert made(torch.zeros(2, channels, 8, 8)).shape == (2, 5)
        assert isinstance(made.stem[1], GroupNorm)
    assert is_foreign("torchvision:small")
    with pytest.raises(UsageError, match="torchvision has no such network; did you mean small"):
        check_model("torchvision:smal")
    with pytest.raises(UsageError, match="takes no argument 'dropout'"):
        build_model("torchvision:small", "gn", num_classes=5, in_channels=3, dropout=0.1)


# torchvision of another build than torch's raises RuntimeError when it is imported
def test_a_library_that_cannot_be_imported(torchvision: Path) -> None:
    (torchvision / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(
        UsageError, match=r"importing torchvision.models raised RuntimeError: operator .* the build for"
    ):
        check_model("torchvision:resnet18")


def test_networks_of_the_real_one() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    made = build_model("torchvision:resnet18", "gn:groups=4", num_classes=5, in_channels=1, seed=0)
    assert made(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
