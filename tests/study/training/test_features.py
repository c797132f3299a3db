from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import normlab
from normlab.errors import UsageError
from normlab.models.residual import build_model
from normlab.study.training.features import FeatureRecorder, Watch, evaluating, gradient_norms, growth, sample_size


@pytest.fixture(params=["bn", "gn", "none", "torch-bn"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_model("resnet8", request.param, num_classes=5, in_channels=3, seed=0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_percentiles_are_numpys_on_the_saved_activations(model: nn.Module, images: torch.Tensor) -> None:
    recorder = FeatureRecorder(model, images)
    assert list(recorder.layers) == ["stage 1", "stage 2", "stage 3", "features"]
    saved: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    for name, path in recorder.layers.items():

        def save(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            saved[name] = inputs[0].detach().numpy()

        modules[path].register_forward_pre_hook(save)
    record = recorder.record(3)
    assert record["epoch"] == 3
    for name, summary in record["layers"].items():
        np.testing.assert_allclose(summary["percentiles"], np.percentile(saved[name], [1, 20, 50, 80, 99]), rtol=1e-5)
        assert summary["mean"] == pytest.approx(saved[name].mean(), rel=1e-4, abs=1e-6)
        assert summary["std"] == pytest.approx(saved[name].std(), rel=1e-4)
    json.dumps(record)


def test_all_norms_are_watched_at_the_same_places(images: torch.Tensor) -> None:
    places = {
        tuple(FeatureRecorder(build_model("resnet8", norm, num_classes=5, in_channels=3), images).layers.values())
        for norm in ("bn", "none", "torch-bn", "gn", "bin")
    }
    assert places == {("blocks.0.norm2", "blocks.1.norm2", "blocks.2.norm2", "classifier")}


def test_training_is_left_as_it_was(images: torch.Tensor) -> None:
    model = build_model("resnet8", "bn", num_classes=5, in_channels=3, dropout=0.5)
    model.train()
    model.blocks[0].norm1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    FeatureRecorder(model, images).record(1)
    assert model.training
    assert not model.blocks[0].norm1.training
    assert torch.equal(state, torch.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(not module._forward_hooks for module in model.modules())


def test_a_norm_that_adds_and_rectifies_itself_is_seen_as_the_stock_one(images: torch.Tensor) -> None:
    records = []
    for norm in ("bn", "torch-bn"):
        model = build_model("resnet8", norm, num_classes=5, in_channels=3, seed=0)
        with torch.no_grad():
            for block in model.blocks:
                block.norm2.bias[:5] = -1e-3  # dead by themselves, alive where the shortcut is added
                block.norm2.weight[:5] = 0.0
        records.append(FeatureRecorder(model, images).record(1)["layers"])
    for name, ours in records[0].items():
        stock = records[1][name]
        assert ours["dead"] == pytest.approx(stock["dead"])
        assert ours["percentiles"] == pytest.approx(stock["percentiles"], rel=1e-3, abs=1e-4)
    assert records[0]["stage 1"]["dead"] == pytest.approx(5 / 16)


def test_dead_channels_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.fill_(0)
        model[1].bias.copy_(torch.tensor([-1.0, 1.0, 0.0, 2.0]))
    record = FeatureRecorder(model, torch.randn(5, 3, 4, 4)).record(1)
    assert record["layers"]["stage 1"]["dead"] == 0.5


def test_a_plain_network_without_norms_is_watched_at_its_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    recorder = FeatureRecorder(model, torch.randn(2, 3, 4, 4))
    assert recorder.layers == {"stage 1": "0", "features": "3"}


def test_chosen_layers_and_unknown_ones(model: nn.Module, images: torch.Tensor) -> None:
    assert list(FeatureRecorder(model, images, ["blocks.1.conv2"]).record(1)["layers"]) == ["blocks.1.conv2"]
    with pytest.raises(UsageError, match=r"no layer 'blocks\.9'"):
        FeatureRecorder(model, images, ["blocks.9"])


# Bug: under "+ws" the layers had other names than in other networks, and stood beside them in the report's chart.
@pytest.mark.parametrize("how", ["ws", "sws", "wn", "spectral"])
def test_gradient_norms_of_normalized_weights_have_the_layers_names(how: str) -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    normlab.normalize_weights(layers, how)(torch.randn(2, 1, 4, 4)).sum().backward()
    assert set(gradient_norms(layers)) == {"0", "2"}


def test_gradient_norms_are_those_of_the_weights(model: nn.Module, images: torch.Tensor) -> None:
    assert gradient_norms(model) == {}
    model(images).square().mean().backward()
    norms = gradient_norms(model)
    assert norms["blocks.0.conv1"] == pytest.approx(float(model.blocks[0].conv1.weight.grad.norm()), rel=1e-5)
    assert {"stem.0", "classifier"} <= norms.keys()
    assert not any("norm" in name for name in norms)


def test_modes_come_back_after_an_error(model: nn.Module) -> None:
    model.train()
    with pytest.raises(RuntimeError, match="on purpose"), evaluating(model):  # noqa: PT012
        assert not torch.is_grad_enabled()
        raise RuntimeError("on purpose")
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_watch_records_what_a_report_draws() -> None:
    from normlab.data import load

    dataset = load("digits")
    model = build_model("resnet8", "gn", num_classes=10, in_channels=1, image_size=dataset.size, seed=0)
    watch = Watch(model, dataset)
    x = torch.randn(4, 1, 8, 8)
    model(x).square().mean().backward()
    record = watch.record(1)
    assert list(record["features"]) == ["stage 1", "stage 2", "stage 3", "features"]
    assert record["gradients"]["stem.0"] > 0
    assert record == watch.record(2)
    json.dumps(record)


def test_growth_is_the_ratio_of_last_to_first_width() -> None:
    def epoch(low: float, high: float) -> dict[str, object]:
        return {"features": {"features": {"percentiles": [low, 0.0, 0.1, 0.2, high]}}}

    assert growth([epoch(-1, 1), epoch(-9, 9), epoch(-2, 4)]) == 3.0
    assert np.isnan(growth([{"epoch": 1}]))
    assert np.isnan(growth([epoch(-1, 1)], "stage 1"))


def test_sample_grows_with_the_training_set_within_bounds() -> None:
    assert [sample_size(n) for n in (100, 1_437, 5_000, 40_000)] == [16, 16, 50, 128]
