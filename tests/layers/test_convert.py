"""Another kind of norm in a trained network: matched to what the next layers expect, and a way back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.errors import UsageError
from normlab.layers import norms
from normlab.models import build_model


def network(norm: str = "bn") -> nn.Module:
    """A small network whose norms have statistics, weights and biases of their own, as after training."""
    torch.manual_seed(0)
    model = build_model("resnet8:width=8", norm, num_classes=4, in_channels=3, seed=0)
    model.train()
    for _ in range(20):
        model(images(32) * torch.rand(1) + torch.rand(1))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, norms.Norm):
                module.weight.copy_(torch.randn(module.num_features) + 0.5)
                module.bias.copy_(torch.randn(module.num_features) / 2)
    return model.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8).cumsum(3)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return network()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def moments(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of each channel that each norm of a model puts out, before its activation."""
    found = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        act, layer.act = layer.act, None
        y = layer.forward(inputs[0]).movedim(1, 0).flatten(1).double()
        layer.act = act
        found.append((y.mean(1), y.std(1, correction=0)))

    handles = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, norms.Norm)]
    outputs(model, x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("to", ["gn:groups=2", "ln", "in", "frn", "rms", "bn"])
def test_every_channel_keeps_its_mean_and_deviation(trained: nn.Module, to: str) -> None:
    """Of the old norm's outputs, though the inputs of later layers are others now."""
    x = images(48)
    expected = moments(trained, x)
    converted = normlab.convert(copy.deepcopy(trained), to, x)
    for (mean, deviation), (wanted_mean, wanted) in zip(moments(converted, x), expected, strict=True):
        torch.testing.assert_close(mean, wanted_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deviation, wanted, rtol=1e-3, atol=1e-3)


def test_matching_beats_copying(trained: nn.Module) -> None:
    x = images(48)
    matched, copied = copy.deepcopy(trained), copy.deepcopy(trained)
    normlab.convert(matched, "gn:groups=1", x)
    normlab.convert(copied, "gn:groups=1", x, match=False)
    assert normlab.convert_report(matched).error < 0.5 * normlab.convert_report(copied).error


def test_the_number_of_groups_is_that_of_the_smallest_error(trained: nn.Module) -> None:
    model = normlab.convert(copy.deepcopy(trained), "gn", images(48))
    report = normlab.convert_report(model)
    assert report.to == min(report.tried, key=report.tried.__getitem__)
    assert report.error == report.tried[report.to]
    assert len(report.changed) == len([m for m in model.modules() if isinstance(m, normlab.layers.GroupNorm)])
    for word in (report.to, "0 left", "tried"):
        assert word in str(report)


def test_parameters_stay_the_same_objects_and_there_is_a_way_back(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    before, held = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    x = images(32)
    expected = outputs(model, x)
    normlab.convert(model, "ln", x)
    assert all(p is held[name] for name, p in model.named_parameters())
    assert not torch.equal(outputs(model, x), expected)
    normlab.revert(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(outputs(model, x), expected)
    with pytest.raises(UsageError, match="not converted"):
        normlab.revert(model)


# what was kept of a norm stayed in float32 where the model had gone to float64 meanwhile
def test_there_is_a_way_back_into_another_dtype(trained: nn.Module) -> None:
    model = normlab.convert(copy.deepcopy(trained), "gn:groups=2", images(8)).double()
    normlab.revert(model)
    torch.testing.assert_close(model.state_dict(), copy.deepcopy(trained).double().state_dict(), rtol=0, atol=0)


def test_batch_instance_norm_takes_over_a_batch_norm_exactly(trained: nn.Module) -> None:
    model = normlab.convert(copy.deepcopy(trained), "bin")
    x = images(16)
    torch.testing.assert_close(outputs(model, x), outputs(trained, x))
    fresh = build_model("resnet8:width=8", "bin", num_classes=4, in_channels=3)
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(outputs(fresh.eval(), x), outputs(trained, x))
    fresh.load_state_dict(trained.state_dict(), strict=True)  # a batch norm's checkpoint: rho is 1
    torch.testing.assert_close(outputs(fresh.eval(), x), outputs(trained, x))


# running statistics of the new layers were the old ones' buffers, which matching and training overwrote
@pytest.mark.parametrize("to", ["sn", "ibn-a", "bin", "bn", "frozen"])
def test_statistics_come_back_too(trained: nn.Module, to: str) -> None:
    model, x = copy.deepcopy(trained), images(32)
    model = nn.Sequential(model, nn.Linear(4, 24), nn.Unflatten(1, (6, 2, 2)), nn.GroupNorm(2, 6))
    before = copy.deepcopy(model.state_dict())
    normlab.convert(model, to, x)
    model.train()(images(8) + 3)
    normlab.revert(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# a frozen batch norm has buffers for weight and bias: they stayed 1 and 0, and converting one was a KeyError
def test_a_frozen_batch_norm_is_converted_both_ways(trained: nn.Module) -> None:
    x = images(16)
    expected = outputs(trained, x)
    model = normlab.convert(copy.deepcopy(trained), "frozen")
    torch.testing.assert_close(outputs(model, x), expected)
    before = copy.deepcopy(model.state_dict())
    normlab.convert(model, "bn")
    torch.testing.assert_close(outputs(model, x), expected)
    assert dict(model.named_parameters()).keys() == dict(trained.named_parameters()).keys()
    normlab.revert(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# what stood behind torch's layer in the place of ours was forgotten
def test_an_activation_behind_a_restored_layer_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), normlab.make_norm("bn", 4, act="relu"), nn.Conv2d(4, 4, 3))
    x = images(8)
    model(x)
    expected = outputs(model, x)
    normlab.convert(normlab.restore_norms(model), "bn")
    torch.testing.assert_close(outputs(model, x), expected)
    torch.testing.assert_close(outputs(normlab.revert(model), x), expected)
    normlab.convert(model, "ln", x)
    assert not model[:2](x).lt(0).any()


# a gate that had learned counted as batch norm, and went away without a word
def test_batch_instance_norm_is_no_batch_norm() -> None:
    with pytest.raises(UsageError, match="needs images"):
        normlab.convert(network("bin"), "bn")


class Interrupting(nn.Module):
    """A model that somebody interrupts, after a number of calls."""

    def __init__(self, model: nn.Module, calls: int, error: type[BaseException]) -> None:
        super().__init__()
        self.model, self.error, self.calls = model, error, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise self.error("enough")
        return self.model(x)


# half of the layers were new, and nothing knew the old ones
@pytest.mark.parametrize(("calls", "distill"), [(0, 0), (2, 0), (3, 0), (7, 5)])
def test_what_is_interrupted_is_undone(trained: nn.Module, calls: int, distill: int) -> None:
    model = Interrupting(copy.deepcopy(trained), calls, KeyboardInterrupt).train()
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        normlab.convert(model, "ln", images(16), distill=distill)
    assert list(model.modules()) == modules
    assert all(module.training for module in modules)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(UsageError, match="not converted"):
        normlab.revert(model)


# it was "min() iterable argument is empty"
def test_the_reason_why_no_number_of_groups_fits(trained: nn.Module) -> None:
    model = Interrupting(copy.deepcopy(trained), 2, ValueError)
    with pytest.raises(ValueError, match="enough"):
        normlab.convert(model, "gn", images(16))


def test_every_layer_has_the_mode_of_the_one_before(trained: nn.Module) -> None:
    model = copy.deepcopy(trained).train()
    first = next(name for name, module in model.named_modules() if isinstance(module, norms.Norm))
    model.get_submodule(first).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    normlab.convert(model, "ln", images(16))
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_distillation_comes_closer(trained: nn.Module) -> None:
    model = normlab.convert(copy.deepcopy(trained), "in", images(48), distill=20)
    report = normlab.convert_report(model)
    assert report.error < report.undistilled
    assert not any(module.training for module in model.modules())


class Theirs(nn.Module):
    """torch's own layers, one of them in two places, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.same = nn.Sequential(self.norm, nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(8, 6, 1), nn.GroupNorm(3, 6), nn.InstanceNorm2d(6), nn.LayerNorm([6, 6, 6]))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.same(self.norm(self.conv(x)))).mean((2, 3))


def test_layers_of_torch(recwarn: pytest.WarningsRecorder) -> None:
    model = Theirs().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    normlab.convert(model, "gn", ((part, None) for part in images(32).split(8)))
    assert model.norm is model.same[0]
    assert isinstance(model.norm, normlab.layers.GroupNorm)
    assert isinstance(model.tail[2], normlab.layers.GroupNorm)
    report = normlab.convert_report(model)
    assert set(report.left) == {"tail.3"}
    assert report.images == 32
    assert model.norm.training
    model(images(4)).sum().backward()
    optimizer.step()
    assert model.norm.weight in optimizer.state


@pytest.mark.parametrize(
    ("model", "to", "calibrate", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "gn", images(4), ["no norm"]),
        (nn.Sequential(nn.LayerNorm(8)), "gn", images(4), ["no norm", "each element"]),
        (nn.BatchNorm2d(3), "gn", images(4), ["whole model"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", None, ["calibrate"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", [], ["empty"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", ["a.jpg"], ["str", "(N, C, H, W)"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "none", images(4), ["none", "gn"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn+ws", images(4), ["weights"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "xn", images(4), ["xn"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn:size=2", images(4), ["size"]),
        # Bugs: AttributeErrors, the model's own error, and weights that are no numbers
        (None, "gn", images(4), ["convert: expected a torch.nn.Module, got None"]),
        (nn.Sequential(nn.BatchNorm2d(3)), None, images(4), ["norm None", "expected a name"]),
        (nn.Sequential(nn.BatchNorm2d(3)), nn.GroupNorm, images(4), ["GroupNorm", "expected a name"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", 4, ["calibrate is int"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", images(4)[:, :2], ["does not take the images"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "gn", images(4) * float("nan"), ["not a number"]),
    ],
)
def test_what_cannot_be_converted_is_told_and_stays(model: Any, to: Any, calibrate: object, words: list[str]) -> None:
    before = [] if model is None else [type(module) for module in model.modules()]
    with pytest.raises(UsageError) as caught:
        normlab.convert(model, to, calibrate)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert before == ([] if model is None else [type(module) for module in model.modules()])


# Bugs: a negative number of steps was none, another thing a TypeError after all of the work
@pytest.mark.parametrize("distill", [-1, "many", 2.5, True])
def test_steps_of_distillation_are_a_whole_number(distill: Any) -> None:
    with pytest.raises(UsageError, match="distill="):
        normlab.convert(nn.Sequential(nn.BatchNorm2d(3)), "gn", images(4), distill=distill)


# Bug: AttributeErrors
@pytest.mark.parametrize(
    "call",
    [
        normlab.convert_report, normlab.revert, normlab.freeze, normlab.unfreeze, normlab.fold_report,
        lambda model: normlab.fold(model, images(2)), lambda model: normlab.recalibrate(model, images(2)),
    ],
)  # fmt: skip
def test_what_is_no_module_is_refused(call: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module"):
        call([nn.BatchNorm2d(3)])


@pytest.mark.parametrize("norm", ["bn", "torch-bn", "bin"])
@pytest.mark.parametrize("affine", [True, False])
def test_frozen_statistics_survive_train(norm: str, affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), normlab.make_norm(norm, 4), nn.ReLU())
    x = images(8)
    model(x)
    expected = outputs(model.eval(), x)
    before = copy.deepcopy(model.state_dict())
    assert normlab.freeze(model, affine=affine) is model
    for candidate in (model, copy.deepcopy(model)):
        candidate.train()
        assert candidate.training
        torch.testing.assert_close(outputs(candidate, x), expected)
        assert all(torch.equal(value, before[name]) for name, value in candidate.state_dict().items())
        assert [p.requires_grad for p in candidate[1].parameters()][:2] == [not affine] * 2
    normlab.unfreeze(model).train()
    assert [p.requires_grad for p in model[1].parameters()][:2] == [True] * 2
    assert not torch.equal(outputs(model, x + 1), expected)
    with pytest.raises(UsageError, match="running statistics"):
        normlab.freeze(nn.Sequential(nn.GroupNorm(1, 4)))


def test_statistics_are_taken_anew() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model.train()[1].momentum = 0.25
    x = images(64) * 3 + 1
    normlab.recalibrate(model, x.split(16))
    y = model[0](x)
    torch.testing.assert_close(model[1].running_mean, y.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs(model.eval(), x).std((0, 2, 3)), torch.ones(4), rtol=0.05, atol=0)
    assert model[1].momentum == 0.25


# a frozen batch norm counts no batches: its statistics were wiped and not taken anew
def test_frozen_statistics_are_taken_anew() -> None:
    x = images(64) * 3 + 1
    for layer in (normlab.make_norm("frozen", 3), normlab.freeze(nn.Sequential(nn.BatchNorm2d(3)))[0]):
        model = nn.Sequential(layer).train()
        normlab.recalibrate(model, ({"image": part, "label": 0} for part in x.split(16)))
        torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
        assert not layer.training
    assert normlab.make_norm("frozen", 3).num_batches_tracked is None


# the statistics were forgotten before the mistake was seen
def test_statistics_outlive_a_mistake() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    model(images(8))
    before = copy.deepcopy(model.state_dict())
    for wrong, words in (
        ([], "no images"),
        (["a.jpg"], "recalibrate: images has str"),
        ([images(2)[:, :2]], "running_mean"),
    ):
        with pytest.raises((UsageError, RuntimeError), match=words):
            normlab.recalibrate(model, [*([images(4)] if wrong else []), *wrong])
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert model[0].momentum == 0.1
        assert model[0].training
