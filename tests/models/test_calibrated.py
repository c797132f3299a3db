"""Norms of a comparison that start matched to those of the pretrained network that they are put into."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.errors import UsageError
from normlab.models import build_model
from normlab.models.residual import ResNet


def images() -> Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(3)


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight, 1.0)
        nn.init.normal_(norm.bias)
    for _ in range(20):
        model(images())
    return model.eval()


def made(model: object, norm: str, **more: object) -> nn.Module:
    return build_model(model, norm, num_classes=2, in_channels=3, image_size=(8, 8), **more).eval()  # type: ignore[arg-type]


def error(model: nn.Module, like: nn.Module) -> float:
    with torch.no_grad():
        return float((model(images()) - like(images())).square().mean())


def test_it_starts_nearer_to_the_pretrained_network(pretrained: nn.Module) -> None:
    copied = error(made(pretrained, "gn:groups=1"), pretrained)
    matched = error(made(pretrained, "gn:calibrated", calibrate=images), pretrained)
    assert matched < 0.3 * copied
    expected = normlab.convert(copy.deepcopy(pretrained), "gn:groups=1", images())
    assert error(made(pretrained, "gn:calibrated", calibrate=images), expected) == 0
    assert error(made(pretrained, "gn:groups=2:calibrated", calibrate=images), expected) > 0


@pytest.mark.parametrize("norm", ["gn:calibrated", "frn:calibrated", "ln:calibrated"])
def test_trained_weights_load_where_there_are_no_images(pretrained: nn.Module, norm: str) -> None:
    trained = made(pretrained, norm, calibrate=images)
    again = made(pretrained, norm)
    again.load_state_dict(trained.state_dict())
    assert error(again, trained) == 0


def test_a_network_that_is_built_with_its_norm_starts_from_batch_norm() -> None:
    model = made("resnet8:width=4", "gn:calibrated", seed=0, calibrate=images)
    assert isinstance(model, ResNet)
    found = {type(m).__name__ for m in model.modules() if isinstance(m, normlab.layers.Norm)}
    assert found == {"GroupNorm"}
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {1}


def test_what_cannot_be_calibrated_is_refused(pretrained: nn.Module) -> None:
    with pytest.raises(UsageError, match="a layer by itself"):
        normlab.make_norm("gn:calibrated", 8)
    with pytest.raises(UsageError, match="no weight and bias per channel"):
        made(pretrained, "dyt:calibrated", calibrate=images)
    with pytest.raises(UsageError, match="'calibratd' is not of the form"):
        made(pretrained, "gn:calibratd")


@pytest.mark.slow
def test_a_comparison_fine_tunes_each_form(pretrained: nn.Module, tmp_path: Path) -> None:
    """And the networks that it kept load again."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    study = normlab.compare(
        (x, y), ["keep", "frozen", "gn", "gn:calibrated"], copy.deepcopy(pretrained),
        seeds=1, epochs=1, batch_size=4, out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    cells = study.results["cells"]
    assert [(cell["norm"], cell["status"]) for cell in cells] == [
        (norm, "done") for norm in ("keep", "frozen", "gn", "gn:calibrated")
    ]
    assert "gn:calibrated" in str(study.table())
    net = study.trained("gn:calibrated").model(pretrained)
    assert len(net(torch.from_numpy(x[:3]).permute(0, 3, 1, 2))) == 3
