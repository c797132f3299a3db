from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from normlab.errors import UsageError
from normlab.explain.gradcam import DELETED, agreement, deletion, enlarged, grad_cam, last_planes
from normlab.models.residual import build_model


@pytest.fixture(params=["bn", "gn", "none", "torch-bn"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    model = build_model("resnet8", request.param, num_classes=5, in_channels=3, seed=0)
    for _ in range(3):  # running statistics that differ from any batch's own
        model(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 + 1)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


TARGETS = [0, 1, 2, 3, 4, 0]


def by_hand(model: nn.Module, images: torch.Tensor, targets: list[int]) -> np.ndarray:
    """Grad-CAM in ten lines, sharing nothing with the code under test."""
    model.eval()
    kept: list[torch.Tensor] = []
    handle = model.blocks.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    score = sum(logits[n, target] for n, target in enumerate(targets))
    (gradient,) = torch.autograd.grad(score, kept[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * kept[0]).sum(dim=1).clamp(min=0).detach().numpy()


def test_equals_an_independent_implementation(model: nn.Module, images: torch.Tensor) -> None:
    maps = grad_cam(model, images, TARGETS)
    expected = by_hand(model, images, TARGETS)
    assert maps.shape == (6, 4, 4)
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["blocks", "stem", "blocks.1.norm1"])
def test_equals_captum(model: nn.Module, images: torch.Tensor, layer: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed: its maps were not compared")
    found = attr.LayerGradCam(model.eval(), model.get_submodule(layer)).attribute(
        images, target=torch.tensor(TARGETS), relu_attributions=True
    )
    np.testing.assert_array_equal(grad_cam(model, images, TARGETS, layer), found.detach().squeeze(1).numpy())


def test_a_frozen_layer_before_one_that_works_in_place(images: torch.Tensor) -> None:
    """Its output asks for no gradient, and is overwritten before the gradient is taken."""
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    plain = nn.Sequential(*layers)
    expected = grad_cam(plain, images, TARGETS, "0")
    layers[1] = nn.ReLU(inplace=True)
    frozen = nn.Sequential(*layers).requires_grad_(False)
    np.testing.assert_array_equal(grad_cam(frozen, images, TARGETS, "0"), expected)
    assert expected.max() > 0


def test_evaluation_statistics_are_used_and_training_is_untouched(model: nn.Module, images: torch.Tensor) -> None:
    model.train()
    model.blocks[1].norm1.eval()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    together = grad_cam(model, images, TARGETS)
    alone = np.concatenate([grad_cam(model, images[n : n + 1], TARGETS[n : n + 1]) for n in range(6)])
    # batch statistics would make an image's map depend on its company
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert model.training
    assert not model.blocks[1].norm1.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "classifier.weight")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_last_planes_are_found_in_other_networks() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert last_planes(net, torch.zeros(1, 1, 8, 8)) == "1"
    with pytest.raises(UsageError, match=r"N, C, H, W"):
        last_planes(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.zeros(1, 1, 8, 8))


def test_unknown_layer_is_named(model: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="no layer 'nowhere'"):
        grad_cam(model, images, TARGETS, layer="nowhere")


def test_enlarged_maps_end_at_one() -> None:
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, 1, 1] = 7
    large = enlarged(maps, (8, 8))
    assert large.shape == (2, 8, 8)
    assert large[0].max() == 1
    assert large[0, 7, 7] == 1
    assert not large[1].any()


def test_agreement_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 4, 4)).astype(np.float32)
    a[2] = np.round(a[2], 1)  # ties
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(agreement(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(agreement(a, a), 1.0)
    assert np.isnan(agreement(np.zeros_like(a), b)).all()


class LooksInTheCorner(nn.Module):
    """Says class 1 if, and only if, the upper left quarter is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = 10 * self.planes(x)[:, 0, :4, :4].mean(dim=(1, 2)) - 5
        return torch.stack([-score, score], dim=1)


def test_deletion_tells_a_faithful_map_from_a_false_one() -> None:
    images = torch.ones(3, 1, 8, 8)
    true, false = np.zeros((3, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32)
    true[:, :4, :4], false[:, 4:, 4:] = 1, 1
    faithful = deletion(LooksInTheCorner(), images, [1, 1, 1], true)
    misled = deletion(LooksInTheCorner(), images, [1, 1, 1], false)
    assert len(faithful.by_map) == len(faithful.at_random) == len(DELETED)
    assert faithful.by_map[0] == faithful.at_random[0] > 0.99
    assert faithful.by_map[-1] < 0.01
    assert faithful.gain > 0.2
    assert misled.gain < 0
