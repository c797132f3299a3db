"""Normlab's layers in models that somebody else wrote: swapped, and fused with what follows them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, update_bn

import normlab
from normlab.errors import UsageError
from normlab.layers import faster
from normlab.layers import norms as layers

# --- models as their authors write them ------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """The residual block of torchvision: one ReLU module for both places, in place."""

    def __init__(self, norm: Callable[[int], nn.Module], channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), norm(out)
        self.drop, self.relu = nn.Identity(), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.drop(self.bn1(out))
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(BasicBlock(norm, 8, 8, 1), BasicBlock(norm, 8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layer1(self.stem(x)), 1), 1))


class Dense(nn.Module):
    """Norms before convolutions, whose inputs go elsewhere too; every spelling of an activation."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(4 * i) for i in range(1, 6))
        self.convs = nn.ModuleList(nn.Conv2d(4 * i, 4, 3, padding=1) for i in range(1, 6))
        self.first, self.act = nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        spellings = (
            lambda v: v.relu(),
            lambda v: F.leaky_relu(v, 0.3),
            lambda v: F.silu(v, inplace=True),
            F.gelu,
            self.act,
        )
        for norm, conv, act in zip(self.norms, self.convs, spellings, strict=True):
            x = torch.cat([x, conv(act(norm(x)))], 1)
        return x.mean((2, 3))


class Unfusable(nn.Module):
    """Where nothing can be taken in: each norm's output is seen by somebody, or followed by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(8))
        self.twice = nn.BatchNorm2d(3)
        self.offset = nn.Parameter(torch.randn(1, 3, 1, 1))
        self.register_buffer("factor", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norms[0](x * self.factor)
        x = F.relu(a) + a  # seen twice
        x = torch.tanh(self.norms[1](x))
        x = F.gelu(self.norms[2](x), approximate="tanh")
        x = self.norms[3](x) + self.offset  # of another shape
        x = torch.add(self.norms[4](x), x, alpha=2)
        x = F.relu(self.twice(x)) + self.twice(x)  # one layer, two places
        b = x * 1
        b += self.norms[5](x)  # somebody else's tensor changes
        c = self.norms[6](b)
        d = c + c
        return self.norms[7](d) + 1.0


class Instances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.SiLU(),
            nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8), nn.GELU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1).unflatten(1, (-1, 6)))
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        return self.norm2(x).mean(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "residual-gn": lambda: Residual(lambda c: nn.GroupNorm(2, c)),
    "dense": Dense,
    "unfusable": Unfusable,
    "instances": Instances,
    "tokens": Tokens,
}
STOCK = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
OURS = (layers.Norm, layers.LayerNorm, layers.RMSNorm)


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(5)
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return model


def images(dtype: torch.dtype = torch.float64, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(4, 3, 12, 12, generator=generator).to(dtype).contiguous(memory_format=layout)


def trained(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs in training and then in evaluation, every gradient, every buffer."""
    model.train()
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        after = model.eval()(x)
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, "after": after, **grads, **dict(model.named_buffers())}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, name=name: f"{name}: {m}", check_stride=False)


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (*STOCK, *OURS))]


# --- swapped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_swapped_computes_the_same(name: str, layout: torch.memory_format) -> None:
    stock = made(name).to(memory_format=layout)
    swapped = copy.deepcopy(stock)
    before = {id(m): m for m in swapped.modules()}
    held = {k: id(v) for k, v in (*swapped.named_parameters(), *swapped.named_buffers())}
    assert normlab.swap_norms(swapped) is swapped
    assert all(isinstance(m, OURS) for m in norms_of(swapped))
    assert len(norms_of(swapped)) == len(norms_of(stock)) > 0
    assert {id(m) for m in swapped.modules()} == before.keys(), "who holds a layer holds another one"
    assert {k: id(v) for k, v in (*swapped.named_parameters(), *swapped.named_buffers())} == held
    assert list(swapped.state_dict()) == list(stock.state_dict())
    x = images(layout=layout)
    same(trained(swapped, x), trained(stock, x))
    stock.load_state_dict(swapped.state_dict())
    repr(swapped)
    again = pickle.loads(pickle.dumps(swapped))
    torch.testing.assert_close(again(x), swapped(x))


def test_an_optimizer_made_before_goes_on() -> None:
    model = made("residual", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.stem[1].weight.detach().clone()
    normlab.swap_norms(model)(images(torch.float32)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.stem[1].weight, before)


def test_modes_hooks_and_options_stay() -> None:
    norm = nn.BatchNorm1d(4, eps=0.5, momentum=None, affine=False).eval()
    seen: list[Any] = []
    norm.register_forward_hook(lambda module, args, y: seen.append(module))
    norm.extra = "mine"
    model = normlab.swap_norms(nn.ModuleList([norm, norm]))
    assert type(norm) is normlab.layers.BatchNorm1d
    assert model[0] is model[1] is norm
    assert (norm.eps, norm.momentum, norm.affine, norm.training, norm.extra) == (0.5, None, False, False, "mine")
    norm(torch.randn(3, 4))
    assert seen == [norm]


class Own(nn.BatchNorm2d):
    """Somebody's subclass, which may do more than its base."""


@pytest.mark.parametrize(
    "layer",
    [nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), Own(3), nn.utils.parametrizations.weight_norm(Own(3))],
    ids=lambda m: type(m).__name__,
)
def test_layers_of_a_class_of_their_own_stay(layer: nn.Module) -> None:
    kind = type(layer)
    with pytest.warns(UserWarning, match="no layer was taken"):
        model = normlab.swap_norms(nn.Sequential(layer))
    assert type(model[0]) is kind
    assert list(normlab.swap_report(model).left) == ["0"]


class LikeLlamas(nn.Module):
    """An RMS norm that no library has."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


LikeLlamas.__name__ = "LlamaRMSNorm"  # which says that it is a norm
TREATMENTS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 2), lambda m: prune.remove(m, "weight")),
    "weight_norm": (
        lambda m: nn.utils.parametrizations.weight_norm(m, dim=None),
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "spectral_norm": (
        nn.utils.parametrizations.spectral_norm,
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "spectral_norm, the older one": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize(
    "make",
    [lambda: nn.BatchNorm2d(4), lambda: nn.GroupNorm(2, 4), lambda: nn.LayerNorm(4), lambda: LikeLlamas(4)],
    ids=["batch", "group", "layer", "somebody's"],
)
def test_layers_that_were_pruned_or_parametrized_before(make: Callable[[], nn.Module], treatment: str) -> None:
    """Bug: such layers were left, as if what computes their weight were something that ours lack."""
    before, after = TREATMENTS[treatment]
    stock, ours = (nn.Sequential(make()).double() for _ in range(2))
    for model in (stock, ours):
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
        before(model[0])
    kind, x = type(ours[0]), torch.randn(5, 4, 3, 4).double()
    normlab.swap_norms(ours)
    assert normlab.swap_report(ours).left == {}
    assert list(ours.state_dict()) == list(stock.state_dict())
    same(trained(ours, x), trained(stock, x))
    normlab.restore_norms(ours)
    assert type(ours[0]).__bases__ == kind.__bases__
    normlab.swap_norms(ours)
    for model in (stock, ours):
        after(model[0])
    same(trained(ours, x), trained(stock, x))
    assert type(normlab.restore_norms(ours)[0]) is type(stock[0])


def test_a_single_sample_is_not_taken_for_a_batch() -> None:
    """Bug: torch's InstanceNorm2d reads (4, 4, 5) as one sample, ours would read it as four of one dimension."""
    layer = normlab.swap_norms(nn.Sequential(nn.InstanceNorm2d(4)))
    x = torch.randn(4, 4, 5)
    torch.testing.assert_close(layer(x), nn.InstanceNorm2d(4)(x))
    assert layer(torch.randn(1, 4, 4, 5)).shape == (1, 4, 4, 5)


# --- by their class --------------------------------------------------------------------------------------------------


def test_layers_are_found_by_torchs_classes() -> None:
    """Bug: `update_bn` found no batch norm in a model with ours, and left its statistics alone without a word."""
    assert isinstance(layers.BatchNorm(4), nn.modules.batchnorm._BatchNorm)
    assert isinstance(layers.InstanceNorm(4), nn.modules.instancenorm._InstanceNorm)
    assert isinstance(layers.GroupNorm(2, 4), nn.GroupNorm)
    model = normlab.swap_norms(made("residual", torch.float32))
    averaged = AveragedModel(model)
    data = [images(torch.float32) + 3 for _ in range(3)]
    update_bn(data, averaged)
    want = AveragedModel(made("residual", torch.float32))
    update_bn(data, want)
    same(dict(averaged.named_buffers()), dict(want.named_buffers()))


def test_a_converter_may_not_lose_an_activation() -> None:
    """Bug: made a batch norm of torch's class, a layer was converted to torch's SyncBatchNorm without its ReLU."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    assert type(convert(nn.Sequential(layers.BatchNorm(4)))[0]) is nn.SyncBatchNorm
    with pytest.raises(RuntimeError, match=r"would leave out act='relu'; normlab\.distributed\.synchronize"):
        convert(nn.Sequential(layers.BatchNorm(4, act="relu")))
    layer = layers.BatchNorm(4)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = "any"
    assert copy.deepcopy(layer).qconfig == "any"


def test_only_torchs_own_layers_become_torchs_synchronized_ones() -> None:
    from normlab.study.running.shared import _synchronize_stock

    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layers.BatchNorm(4, act="relu"), nn.BatchNorm2d(4)))
    weight = model[1][1].weight
    _synchronize_stock(model)
    assert [type(m) for m in (model[0], *model[1])] == [nn.SyncBatchNorm, layers.BatchNorm, nn.SyncBatchNorm]
    assert model[1][1].weight is weight


@pytest.mark.parametrize("metadata", [True, False])
def test_checkpoints_from_before_there_was_a_counter(metadata: bool) -> None:
    """Bug: without `num_batches_tracked` a checkpoint did not load, as it does in torch."""
    state = nn.BatchNorm2d(4).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layers.BatchNorm(4).load_state_dict(state if metadata else dict(state))


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is faster is decided by a clock, so the clock is the test's."""
    taken_to_be_slow = {"GroupNorm"}

    def seconds(layer: nn.Module, x: Tensor) -> float:
        seen.append((type(layer).__name__, layer.training, tuple(x.shape)))
        is_ours = type(layer).__module__.startswith("normlab")
        return 2.0 if is_ours and type(layer).__name__ in taken_to_be_slow else 1.0

    seen: list[Any] = []
    monkeypatch.setattr(faster, "seconds", seconds)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4), nn.LayerNorm(5)
    )
    model[4].eval()
    normlab.swap_norms(model, where="faster", example=torch.randn(2, 3, 5, 5))
    assert [type(m).__module__.startswith("normlab") for m in model] == [False, True, False, False, True]
    left = normlab.swap_report(model).left
    assert left.keys() == {"2", "3"}
    assert "a training step on (2, 4, 5, 5) takes 2000000 us as ours, 1000000 us as it is" in left["2"]
    assert len(seen) == 3 * 2 * faster.ROUNDS, "layers alike are timed once"
    assert ("LayerNorm", False, (2, 4, 5, 5)) in seen
    assert [m.training for m in model] == [True, True, True, True, False]
    normlab.swap_norms(model)  # everywhere
    assert normlab.swap_report(model).left == {}


def test_where_it_pays_is_measured() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was taken, if so
        normlab.swap_norms(model, where="faster", example=(torch.randn(2, 3, 5, 5),))
    report = normlab.swap_report(model)
    assert len(report.taken) + len(report.left) == 1
    assert model[1].num_batches_tracked == 0


class Given(nn.Module):
    """Two norms that take a gate, as those of Mamba do: one is given none, one a number."""

    def __init__(self) -> None:
        super().__init__()
        self.none, self.number = Gated(3), Gated(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.number(self.none(x, None), 1)


class Gated(nn.BatchNorm2d):
    def forward(self, x: Tensor, gate: Any = None) -> Tensor:
        return super().forward(x)


def test_where_it_pays_with_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a layer that is given None beside its input was said not to be reached by the example."""
    monkeypatch.setattr(faster, "MARGIN", 0.0)
    model = Given()
    why = faster.slower(model, [model.none, model.number], torch.randn(2, 3, 5, 5), lambda layer: None)
    assert "a training step on (2, 3, 5, 5) takes" in why[model.none]
    assert "it is given other things than tensors" in why[model.number]


class Unused(nn.Module):
    """Two norms, of which one is called, by a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(input=x)


# Bugs: layers that the example does not come to, and those called by a keyword, were taken without being timed;
# "Expected more than 1 value per channel" came from the timing.
def test_where_it_pays_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster, "MARGIN", float("inf"))
    model = normlab.swap_norms(Unused(), where="faster", example=torch.randn(2, 3, 5, 5))
    assert normlab.swap_report(model).taken == ("used",)
    assert "does not come to it" in normlab.swap_report(model).left["unused"]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    normlab.swap_norms(model, where="faster", example=torch.randn(1, 3, 5, 5))
    report = normlab.swap_report(model)
    assert report.taken == ("2",)
    assert "could not be timed on (1, 3, 1, 1) (ValueError: Expected more than 1 value" in report.left["1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"where": "faster"}, "example"),
        ({"where": "here"}, "where='here'"),
        ({"where": "faster", "example": torch.ones(2)}, "does not take"),
    ],
)
def test_where_is_refused(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        normlab.swap_norms(nn.Sequential(nn.BatchNorm2d(3)), **options)


# --- what models of other people have in them ------------------------------------------------------------------------


# Bug: layers that TorchScript has compiled were neither taken nor listed.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_parts_are_listed() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), nn.BatchNorm2d(4))
    report = normlab.swap_report(normlab.swap_norms(model))
    assert report.taken == ("1",)
    assert list(report.left) == ["0.1"]
    assert "swap before torch.jit.script" in report.left["0.1"]


# Bug: "'list' object has no attribute 'modules'".
@pytest.mark.parametrize("call", [normlab.swap_norms, normlab.fuse_norms, normlab.restore_norms, normlab.swap_report])
def test_what_is_no_module(call: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module, got a list"):
        call([nn.LayerNorm(4)])
    with pytest.raises(UsageError, match=r"got the class LayerNorm; build one first"):
        call(nn.LayerNorm)


# Bug: "NestedTensorImpl doesn't support sizes", of nested tensors in torch's older layout.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_of_the_older_layout() -> None:
    parts = [torch.randn(2, 6), torch.randn(3, 6)]
    layer = normlab.swap_norms(nn.LayerNorm(6))
    y = layer(torch.nested.nested_tensor(parts, layout=torch.strided))
    for found, x in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(found, F.layer_norm(x, (6,)))
