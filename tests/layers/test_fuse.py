"""What follows a norm, taken into it, in models that somebody else wrote."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections import deque
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normlab
from normlab.errors import UsageError
from tests.layers.test_swap import MODELS, OURS, STOCK, Residual, images, made, norms_of, same, trained


def acts_of(model: nn.Module) -> list[str]:
    return list(normlab.swap_report(model).fused.values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_fused_computes_the_same(name: str, layout: torch.memory_format) -> None:
    stock = made(name).to(memory_format=layout)
    x = images(layout=layout)
    fused = normlab.fuse_norms(copy.deepcopy(stock), x)
    assert list(fused.state_dict()) == list(stock.state_dict())
    same(trained(fused, x), trained(stock, x))


def test_what_is_taken_in() -> None:
    fused = normlab.fuse_norms(made("residual"), images())
    assert acts_of(fused) == ["relu", "relu", "addition + relu", "relu", "addition + relu"]
    dense = acts_of(normlab.fuse_norms(made("dense"), images()))
    assert dense == ["relu", "leaky_relu:slope=0.3", "silu", "gelu", "leaky_relu:slope=0.2"]
    instances = acts_of(normlab.fuse_norms(made("instances"), images()))
    assert instances == ["leaky_relu:slope=0.2", "silu", "gelu"]
    unfusable = normlab.swap_report(normlab.fuse_norms(made("unfusable"), images()))
    assert unfusable.fused.keys() == {"twice", "norms.5"}  # `twice` in two places, each call for itself


def test_the_model_itself_stays_what_it_was() -> None:
    model = made("residual").train()
    model.stem[1].eval()  # frozen
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fused = normlab.fuse_norms(model, images())
    assert all(isinstance(m, STOCK) and not isinstance(m, OURS) for m in norms_of(model))
    assert {k: torch.equal(v, state[k]) for k, v in model.state_dict().items()} == dict.fromkeys(state, True)
    assert (model.training, model.stem[1].training, model.layer1[0].bn1.training) == (True, False, True)
    frozen, trains = fused.get_submodule("stem.1"), fused.get_submodule("layer1.0.bn1")
    assert (fused.training, frozen.training, trains.training) == (True, False, True)
    assert fused.get_submodule("stem.1").weight is model.stem[1].weight
    torch.testing.assert_close(fused.eval()(images()), model.eval()(images()))


def test_the_example_stays_what_it_was() -> None:
    """Bug: a model that changes its input in place was given a changed one the second time."""
    example = images()
    before = example.clone()
    model = nn.Sequential(nn.Hardtanh(-1, 1, inplace=True), made("residual"))
    assert len(acts_of(normlab.fuse_norms(model, example))) == 5
    assert torch.equal(example, before)


def test_a_layer_that_is_watched_stays_as_it_is() -> None:
    model = made("instances")
    model.net[4].register_forward_hook(lambda *_: None)
    model.net[8].register_forward_hook(lambda *_: None)  # the GELU
    assert acts_of(normlab.fuse_norms(model, images())) == ["leaky_relu:slope=0.2"]


def test_compiles_and_fuses_once_more() -> None:
    fused = normlab.fuse_norms(made("residual", torch.float32), images(torch.float32))
    again = normlab.fuse_norms(fused, images(torch.float32))
    assert acts_of(again) == acts_of(fused)
    want = fused.eval()(images(torch.float32))
    got = torch.compile(fused, backend="aot_eager", fullgraph=True)(images(torch.float32))
    torch.testing.assert_close(got, want)


class Changing(nn.Module):
    """Changes a norm's input after the norm, so that the norm may not be moved behind that."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(x)
        return F.relu(y + x.mul_(2))


def test_an_input_that_is_changed_behind_the_norm() -> None:
    fused = normlab.fuse_norms(Changing(), torch.randn(2, 3, 4, 4))
    assert acts_of(fused) == []
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fused(x.clone()), Changing()(x.clone()))


@pytest.mark.parametrize("example", [(torch.randn(2, 4, 8, 8),), ()], ids=["shape", "none"])
def test_an_example_that_does_not_fit_is_refused(example: tuple[Any, ...]) -> None:
    model = Residual()
    modes = [m.training for m in model.modules()]
    with pytest.raises(UsageError, match="Residual does not take the example"):
        normlab.fuse_norms(model, *example)
    assert [m.training for m in model.modules()] == modes


# --- where the whole cannot be followed ------------------------------------------------------------------------------


class Block(nn.Module):
    """A block whose training path differs, with a method of its own."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.act = nn.SiLU()

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.features(x) + x, 0.5, self.training)


class Chance(nn.Module):
    """Drops whole samples, as stochastic depth does: control flow and chance."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or float(torch.rand(())) < 0.5:
            return x
        return x * (torch.rand(len(x), 1, 1, 1) < 0.5)


class Branching(nn.Module):
    """Control flow, a part that is never used, a keyword, and attributes that others read."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.drop, self.unused = Block(), Chance(), nn.BatchNorm2d(7)
        self.num_classes = 5

    def forward_features(self, x: Tensor) -> Tensor:
        return self.drop(self.block(x))

    def forward(self, x: Tensor, scale: float = 1.0, *, mask: Tensor | None = None) -> dict[str, Any]:
        x = x if x.sum() > 0 else -x
        y = self.forward_features(x) * scale
        return {"y": y if mask is None else y * mask}


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scales, self.seen = nn.BatchNorm2d(3), [1.0], []

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class WithoutGradient(Norm):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = super().forward(x)
        return x + y


class WithoutAutocast(Norm):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Collecting(Norm):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(super().forward(x))
        return self.seen[-1]


@pytest.mark.parametrize("kind", [WithoutGradient, WithoutAutocast, Collecting])
def test_what_no_graph_shows(kind: type[Norm]) -> None:
    """Bug: gradients that were switched off came back, autocast was not switched, a list got nothing."""
    x = torch.randn(2, 3, 4, 4)
    model = kind()
    fused = normlab.fuse_norms(model, x)
    for layer in (model, fused):
        layer.seen.clear()
    given = [x.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = model(given[0]), fused(given[1])
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(y.square().sum(), v) for y, v in zip((expected, got), given, strict=True)]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert len(fused.seen) == len(model.seen)
    assert not normlab.swap_report(fused).fused


class Counter:
    """An object of somebody's that a forward pass changes."""

    def __init__(self) -> None:
        self.n = 0
        self.tables: dict[str, list[Any]] = {"a": []}


class Remembering(Norm):
    """Holds what a forward pass may change, and counts that."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change
        self.feats: dict[str, list[Any]] = {"a": []}
        self.dq, self.kinds, self._own, self.obj = deque[int](), set[int](), [0], Counter()
        self.array, self.ticks, self.shift = np.zeros(1), itertools.count(), torch.zeros(1)
        self.part = nn.Identity()
        self.part.calls = 0
        self.register_buffer("seen_batches", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.change(self)
        return super().forward(x)

    def remembered(self) -> str:
        feats = [len(self.feats["a"]), len(self.obj.tables["a"])]
        held = self.dq, self.kinds, self._own, self.obj.n, self.array, self.ticks, self.shift, self.part.calls
        return str((feats, *held, self.seen_batches))


def _count_part(m: Any) -> None:
    m.part.calls += 1


def _count_object(m: Any) -> None:
    m.obj.n += 1


CHANGES: dict[str, Any] = {
    "nested": lambda m: m.feats["a"].append(1),
    "nested in an object": lambda m: m.obj.tables["a"].append(1),
    "deque": lambda m: m.dq.append(1),
    "set": lambda m: m.kinds.add(len(m.kinds)),
    "private": lambda m: m._own.append(1),
    "object": _count_object,
    "array": lambda m: m.array.__iadd__(1),
    "count": lambda m: next(m.ticks),
    "tensor": lambda m: m.shift.add_(1),
    "part": _count_part,
    "buffer": lambda m: m.seen_batches.add_(1),
}


# Bugs: a deque, a set, a counter, a private list, a tensor or a part that the forward pass changes was changed once,
# while it was followed, and never again; what lay in a list in a dictionary was not put back.
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_forward_pass_changes_goes_on_changing(change: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    fused = normlab.fuse_norms(Remembering(CHANGES[change]), x)
    plain = copy.deepcopy(fused)
    normlab.restore_norms(plain)
    assert fused.remembered() == plain.remembered()
    for _ in range(2):
        before = fused.remembered()
        for layer in (fused, plain):
            layer(x)
        assert before != fused.remembered() == plain.remembered()


class CollectingDeep(Norm):
    def __init__(self) -> None:
        super().__init__()
        self.feats: dict[str, list[Any]] = {"a": []}
        self.same = self.feats["a"]

    def forward(self, x: Tensor) -> Tensor:
        self.feats["a"].append(super().forward(x))
        return self.feats["a"][-1]


def test_a_nested_list_holds_tensors_only() -> None:
    """Bug: a list in a dictionary kept what stood for tensors while the forward pass was followed."""
    fused = normlab.fuse_norms(CollectingDeep(), torch.randn(2, 3, 4, 4))
    assert fused.feats["a"] is fused.same
    assert [type(v) for v in fused.same] == [Tensor] * len(fused.same)


def test_a_list_that_contains_itself() -> None:
    """Bug: RecursionError."""
    model, x = Norm(), torch.randn(2, 3, 4, 4)
    model.seen.append(model.seen)
    fused = normlab.fuse_norms(model, x)
    assert acts_of(fused) == ["relu"]
    torch.testing.assert_close(fused(x), model(x))


class WithGradient(Norm):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


class AskingForGradients(Norm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if torch.is_grad_enabled() else 2 * y


class AskingForAutocast(Norm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if torch.is_autocast_enabled("cpu") else y


class AskingForInference(Norm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if torch.is_inference_mode_enabled() else y


class AskingForTheDtype(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(torch.get_autocast_dtype("cpu"))


# Bugs: gradients that were switched on stayed off; a forward pass that asks for a setting was fixed to one answer, or
# was refused for a difference.
@pytest.mark.parametrize(
    "kind", [WithGradient, AskingForGradients, AskingForAutocast, AskingForInference, AskingForTheDtype]
)
def test_settings_that_the_forward_pass_reads(kind: type[Norm], caplog: pytest.LogCaptureFixture) -> None:
    x, model = torch.randn(2, 3, 4, 4), nn.Sequential(kind(), Norm()).eval()
    with caplog.at_level("INFO", "normlab"):
        fused = normlab.fuse_norms(model, x)
    assert normlab.swap_report(fused).fused == {"1.norm": "relu"}
    assert f"{kind.__name__} keeps its own forward pass" in caplog.text
    settings: list[Any] = [torch.no_grad(), torch.autocast("cpu", torch.float16), nullcontext()]
    if kind is not WithGradient:  # for a tensor that is made in inference mode has none
        settings.append(torch.inference_mode())
    for setting in settings:
        with setting:
            got, expected = fused(x), model(x)
        torch.testing.assert_close(got, expected)
        assert got.requires_grad == expected.requires_grad


class Looking(Norm):
    def forward(self, x: Tensor) -> Tensor:
        _looked.append((torch.autocast.__enter__, torch.is_autocast_enabled("cuda")))
        return super().forward(x)


_looked: list[tuple[Any, bool]] = []


def test_nothing_of_autocast_stays_changed() -> None:
    """Bug: its `__enter__` was another function meanwhile, which two threads could leave so for ever."""
    own, before = torch.autocast.__enter__, [torch.get_autocast_dtype(d) for d in ("cpu", "cuda")]
    with torch.autocast("cpu", torch.float16):
        assert acts_of(normlab.fuse_norms(Looking(), torch.randn(2, 3, 4, 4))) == ["relu"]
        assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == (True, torch.float16)
    assert {entered for entered, _ in _looked} == {own}
    assert {on for _, on in _looked} == {False, True}  # it was followed with autocast and without
    assert not torch.is_autocast_enabled("cuda")
    assert [torch.get_autocast_dtype(d) for d in ("cpu", "cuda")] == before


@pytest.mark.parametrize("lack", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_is_no_wrong_example(lack: type[Exception]) -> None:
    """Bug: "does not take the example"."""
    model = Norm()
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(lack("no memory")))
    with pytest.raises(lack, match="no memory"):
        normlab.fuse_norms(model, torch.randn(2, 3, 4, 4))


class Scaled(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scales[0]


def test_a_list_that_changes_later() -> None:
    """Bug: what it contained when the model was fused was computed with for ever."""
    x = torch.randn(2, 3, 4, 4)
    model = Scaled()
    fused = normlab.fuse_norms(model, x)
    assert normlab.swap_report(fused).fused
    for layer in (model, fused):
        layer.scales[0] = 3.0
    torch.testing.assert_close(fused(x), model(x))


def test_module_by_module() -> None:
    """Bug: control flow, functional dropout, chance or keywords anywhere, and nothing of the model was fused."""
    torch.manual_seed(0)
    model, x, mask = Branching(), torch.randn(2, 3, 6, 6), torch.rand(2, 1, 6, 6)
    keys = list(model.state_dict())
    fused = normlab.fuse_norms(model, x, mask=mask)
    report = normlab.swap_report(fused)
    assert report.taken == ("block.norm", "unused")
    assert report.fused == {"block.norm": "silu"}
    assert list(fused.state_dict()) == keys
    assert isinstance(fused, Branching)
    assert fused.num_classes == 5
    fused.eval(), model.eval()
    torch.testing.assert_close(fused.forward_features(x), model.forward_features(x))
    torch.testing.assert_close(fused.block.features(x), model.block.features(x))
    for training in (False, True):
        torch.manual_seed(1)
        want = copy.deepcopy(model).train(training)(x, 2.0, mask=mask)["y"]
        torch.manual_seed(1)
        torch.testing.assert_close(fused.train(training)(x, 2.0, mask=mask)["y"], want)


def test_what_is_shared_with_the_model() -> None:
    """Bug: copies of layers shared the tables of parameters, buffers and hooks with the model's own."""
    model = made("residual", torch.float32)
    fused = normlab.fuse_norms(model, images(torch.float32))
    for (name, ours), (_, theirs) in zip(fused.named_parameters(), model.named_parameters(), strict=True):
        assert ours is theirs, name
    norm, own = fused.stem[1], model.stem[1]
    norm.register_forward_hook(lambda *_: None)
    norm.register_buffer("mine", torch.zeros(1))
    norm.note = "mine"
    assert not own._forward_hooks
    assert "mine" not in own._buffers
    assert not hasattr(own, "note")
    before = own.running_mean.clone()
    fused.train()(images(torch.float32))
    assert torch.equal(own.running_mean, before)


def test_one_who_comes_to_watch_sees_what_was_there() -> None:
    """Bug: attribution that hooks activations found none in a fused model, without a word."""
    model, x = made("instances", torch.float32).eval(), images(torch.float32)
    fused = normlab.fuse_norms(model, x)
    seen: list[list[Tensor]] = [[], []]
    for one, outputs in zip((model, fused), seen, strict=True):
        for place in (1, 2, 5):
            one.net[place].register_forward_hook(lambda _m, _x, y, outputs=outputs: outputs.append(y))
    torch.testing.assert_close(fused(x), model(x))
    assert len(seen[1]) == 3
    torch.testing.assert_close(seen[1], seen[0])


class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.doubles = nn.BatchNorm2d(3), False

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(x))
        return 2 * y if self.doubles else y


def test_attributes_and_parts_that_change_later_count() -> None:
    model = Switched().eval()
    x = torch.randn(2, 3, 4, 4)
    fused = normlab.fuse_norms(model, x)
    assert acts_of(fused) == ["relu"]
    for one in (model, fused):
        one.doubles = True
    torch.testing.assert_close(fused(x), model(x))
    for one in (model, fused):
        one.norm = nn.GroupNorm(3, 3)
    torch.testing.assert_close(fused(x), model(x))
    assert torch.equal(model(x), 2 * F.relu(model.norm(x)))


def test_copies_and_pickles_stay_fused() -> None:
    fused = normlab.fuse_norms(made("residual", torch.float32), images(torch.float32)).eval()
    want = fused(images(torch.float32))
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert acts_of(again) == acts_of(fused)
        assert torch.equal(again(images(torch.float32)), want)


def test_a_model_without_norms_is_told_of() -> None:
    with pytest.warns(UserWarning, match="fuse_norms: no layer was taken"):
        normlab.fuse_norms(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
