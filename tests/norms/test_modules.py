"""Members that are modules, beside their papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import normlab
from normlab import layers
from normlab.errors import InputError, UsageError
from normlab.layers import normalize_weights
from normlab.study.axes import listed_norms
from tests.norms.test_docs import run
from tests.norms.test_members import CHANNELS, made, moments, planes, row, standard


def local(x: Tensor, window: int) -> Tensor:
    """The mean over all channels and a window, written as a loop."""
    n, _, h, w = x.shape
    out, r = x.new_zeros(n, 1, h, w), window // 2
    for i in range(h):
        for j in range(w):
            part = x[:, :, max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1]
            out[:, 0, i, j] = part.mean((1, 2, 3))
    return out


def divided(x: Tensor, layer: Any) -> Tensor:
    v = x - local(x, 3)
    return affine(v / (1.5**2 + local(v * v, 3)).sqrt(), layer)


def affine(y: Tensor, layer: Any) -> Tensor:
    return row(layer.weight) * y + row(layer.bias)


def responses(x: Tensor, layer: Any) -> Tensor:
    square = x.square()
    total = torch.stack([square[:, max(0, c - 2) : c + 3].sum(1) for c in range(x.shape[1])], 1)
    return x / (2 + 1e-4 * total) ** 0.75


def evonorm_b0(x: Tensor, layer: Any) -> Tensor:
    batch, own = (moments(x, over)[1] + 1e-5 for over in ((0, 2, 3), (2, 3)))
    return affine(x / torch.maximum(batch.sqrt(), row(layer.v) * x + own.sqrt()), layer)


def evonorm_s0(x: Tensor, layer: Any) -> Tensor:
    groups = x.reshape(x.shape[0], 2, -1)
    std = (groups.var(2, unbiased=False) + 1e-5).sqrt().repeat_interleave(CHANNELS // 2, 1)
    return affine(x * torch.sigmoid(row(layer.v) * x) / std[:, :, None, None], layer)


def heads(x: Tensor, layer: Any) -> Tensor:
    parts = [p / (p.square().mean(1, keepdim=True) + 1e-6).sqrt() * row(layer.weight) for p in x.chunk(2, 1)]
    return torch.cat(parts, 1)


def groups(x: Tensor, layer: Any) -> Tensor:
    y = torch.cat([standard(g, (1, 2, 3), 1e-5) for g in x.chunk(2, 1)], 1)
    rows = (v.repeat_interleave(CHANNELS // 2) for v in (layer.weight, layer.bias))
    weight, bias = map(row, rows)
    return weight * y + bias


def ada(x: Tensor, layer: Any) -> Tensor:
    z = standard(x, (1,), 1e-5)
    return (1 - 0.1 * z).detach() * z


def thresholded(x: Tensor, layer: Any) -> Tensor:
    y = affine(x / (x.square().mean((2, 3), keepdim=True) + 1e-6).sqrt(), layer)
    return torch.where(y >= row(layer.tau), y, row(layer.tau))


PAPERS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "frn-tlu": thresholded,
    "channel-ln": lambda x, layer: affine(standard(x, (1,), 1e-6), layer),
    "qk:heads=2": heads,
    "scalenorm": lambda x, layer: layer.g * x / x.norm(dim=1, keepdim=True).clamp(min=1e-5),
    "adanorm": ada,
    "divisive:window=3:sigma=1.5": divided,
    "lrn": responses,
    "gn-shared:groups=2": groups,
    "evonorm-b0": evonorm_b0,
    "evonorm-s0:groups=2": evonorm_s0,
    "dyt": lambda x, layer: affine(torch.tanh(layer.alpha * x), layer),
    "derf": lambda x, layer: affine(torch.erf(layer.alpha * x + layer.shift), layer),
    "layerscale": lambda x, layer: row(layer.gamma) * x,
}


@pytest.mark.parametrize("spec", PAPERS)
def test_paper(spec: str) -> None:
    layer, x = made(spec), planes().requires_grad_()
    y, want = layer(x), PAPERS[spec](x, layer)
    dy = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(7))
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy))


@pytest.mark.parametrize("spec", [s for s in PAPERS if s != "adanorm"])  # whose derivative leaves a factor out
def test_gradients(spec: str) -> None:
    layer = made(spec)
    x = planes(n=2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


INITIAL = {
    "frn-tlu": {"tau": 0.0},
    "scalenorm": {"g": CHANNELS**0.5},
    "evonorm-b0": {"v": 1.0},
    "evonorm-s0": {"v": 1.0},
    "dyt": {"alpha": 0.5},
    "derf": {"alpha": 0.5, "shift": 0.0},
    "layerscale": {"gamma": 1e-5},
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_values(name: str) -> None:
    found = dict(normlab.make_norm(name, CHANNELS).named_parameters())
    for key, value in ({"weight": 1.0, "bias": 0.0} | INITIAL[name]).items():
        if key in found:
            assert torch.allclose(found[key], torch.tensor(value)), key


def test_evonorm_averages_the_batch_variance() -> None:
    layer, stock, x = made("evonorm-b0"), nn.BatchNorm2d(CHANNELS).double(), planes()
    stock.running_var.copy_(layer.running_var)
    layer(x), stock(x)
    torch.testing.assert_close(layer.running_var, stock.running_var)
    own = (moments(x, (2, 3))[1] + 1e-5).sqrt()
    divisor = torch.maximum((row(layer.running_var) + 1e-5).sqrt(), row(layer.v) * x + own)
    torch.testing.assert_close(layer.eval()(x), affine(x / divisor, layer))


def test_elementwise_layer_norm_is_that_of_torch() -> None:
    layer, stock = normlab.make_norm("ln-elementwise", 4, size=(3, 5)), nn.LayerNorm((4, 3, 5))
    layer.load_state_dict(stock.state_dict())
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(layer(x), stock(x))


# one number was broadcast to all channels, a tracer went inside and failed, no samples were an error
@pytest.mark.parametrize("spec", PAPERS)
def test_they_are_layers_as_torchs(spec: str) -> None:
    layer, x = made(spec).eval(), planes()
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(x), layer(x))
    assert layer(x[:0]).shape == x[:0].shape
    for name, p in list(layer.named_parameters()):
        for shape in {(1,), (2 * p.numel(),), (p.numel(), 1)} - {tuple(p.shape)}:
            setattr(layer, name, nn.Parameter(torch.ones(shape, dtype=p.dtype)))
            with pytest.raises(RuntimeError):
                layer(x)
            setattr(layer, name, p)


# Bug: y was float32, or torch had no operation for it, or warned.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", PAPERS)
def test_half_precision_is_rounded_once(spec: str, dtype: torch.dtype) -> None:
    layer, x = made(spec).float(), planes().to(dtype)
    want = deepcopy(layer)(x.float()).to(dtype)
    assert torch.equal(deepcopy(layer)(x), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), want)
    assert layer.to(dtype)(x).dtype == dtype


# Bug: y was channels-first, which costs the next convolution a copy.
@pytest.mark.parametrize("spec", PAPERS)
def test_channels_last_stays(spec: str) -> None:
    x = planes().contiguous(memory_format=torch.channels_last)
    y = made(spec)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, made(spec)(planes()))


# Bug: whole numbers came out as such, a volume smaller than the window was an error, and so were two dimensions.
@pytest.mark.parametrize("spec", PAPERS)
def test_inputs_of_any_rank_and_of_floats(spec: str) -> None:
    for shape in ((6, CHANNELS), (6, CHANNELS, 7), (6, CHANNELS, 3, 1, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        assert made(spec)(x).shape == shape
    with pytest.raises((TypeError, ValueError), match="float"):
        made(spec)(torch.ones(6, CHANNELS, 3, dtype=torch.long))


# Bug: an empty batch made the running variance NaN, and one value was normalized by a variance of none.
def test_evonorm_of_batches_without_a_variance() -> None:
    layer = made("evonorm-b0")
    before = layer.running_var.clone()
    assert layer(planes()[:0]).shape == (0, CHANNELS, 3, 4)
    assert torch.equal(layer.running_var, before)
    with pytest.raises(InputError, match="more than 1 value per channel"):
        layer(planes()[:1, :, :1, :1])


# one channel was broadcast to all of layer scale's, and layers without weights took any number of channels
@pytest.mark.parametrize("name", ["dyt", "scalenorm", "adanorm", "qk", "layerscale"])
@pytest.mark.parametrize("channels", [1, 2 * CHANNELS])
def test_inputs_of_other_channels_are_refused(name: str, channels: int) -> None:
    with pytest.raises(InputError, match=rf"expected {CHANNELS} channels in dimension 1, got .*\(2, {channels}, 3\)"):
        made(name)(torch.randn(2, channels, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["dyt", "derf", "scalenorm", "adanorm", "qk", "layerscale"])
def test_tokens(name: str) -> None:
    layer = made(name)
    x = torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    want = layer(x.movedim(-1, 1)).movedim(1, -1)
    layer.dim = -1
    torch.testing.assert_close(layer(x), want)


# --- with a condition ------------------------------------------------------------------------------------------------


def test_conditional_batch_norm_has_a_batch_norm_for_each_class() -> None:
    layer: Any = normlab.make_norm("cbn", CHANNELS, classes=3).double()
    weight, bias = layer.embed.weight.chunk(2, 1)
    assert abs(weight.mean().item() - 1) < 0.03
    assert not bias.any()
    nn.init.normal_(layer.embed.weight)
    x, labels = planes(), torch.tensor([0, 2, 1, 1, 0, 2])
    weight, bias = layer.embed.weight[labels].chunk(2, 1)
    want = weight[:, :, None, None] * standard(x, (0, 2, 3), 1e-5) + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, labels), want)


def test_adaptive_instance_norm_has_the_statistics_of_the_style() -> None:
    layer = normlab.make_norm("adain", CHANNELS)
    x, style = planes(), 3 * planes().flip(0)[:, :, :2] - 1
    mean, var = moments(style, (2, 3))
    torch.testing.assert_close(layer(x, style), (var + 1e-5).sqrt() * standard(x, (2, 3), 1e-5) + mean)
    pair = torch.randn(2, 6, CHANNELS, dtype=torch.float64)
    want = pair[0][:, :, None, None] * standard(x, (2, 3), 1e-5) + pair[1][:, :, None, None]
    torch.testing.assert_close(layer(x, (pair[0], pair[1])), want)


def test_film() -> None:
    gamma, beta = torch.randn(2, 6, CHANNELS, dtype=torch.float64)
    want = gamma[:, :, None, None] * planes() + beta[:, :, None, None]
    torch.testing.assert_close(normlab.make_norm("film", CHANNELS)(planes(), (gamma, beta)), want)
    layer: Any = normlab.make_norm("film", CHANNELS, condition=3).double()
    condition = torch.randn(6, 3, dtype=torch.float64)
    gamma, beta = layer.linear(condition).chunk(2, 1)
    want = (1 + gamma)[:, :, None, None] * planes() + beta[:, :, None, None]
    torch.testing.assert_close(layer(planes(), condition), want)
    with pytest.raises(ValueError, match="expected a pair"):
        normlab.make_norm("film", CHANNELS)(planes(), condition)
    with pytest.raises(ValueError, match=r"scale: expected shape \(6, 8\)"):
        normlab.make_norm("film", CHANNELS)(planes(), (gamma[:, :4], beta))


@pytest.mark.parametrize("name", ["adaln", "adaln-zero"])
def test_adaptive_layer_norm(name: str) -> None:
    layer: Any = normlab.make_norm(name, CHANNELS, condition=5).double()
    x, c = torch.randn(2, 7, CHANNELS, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    if name == "adaln-zero":
        y, gate = layer(x, c)
        torch.testing.assert_close(y, standard(x, (2,), 1e-6))
        assert not gate.any()
    theirs = nn.Sequential(nn.SiLU(), nn.Linear(5, layer.parts * CHANNELS)).double()
    layer.load_state_dict({f"adaLN_modulation.{k}": v for k, v in theirs.state_dict().items()})
    shift, scale, *gates = theirs(c).chunk(layer.parts, 1)
    found = layer(x, c)
    y = found if name == "adaln" else found[0]
    torch.testing.assert_close(y, (1 + scale)[:, None] * standard(x, (2,), 1e-6) + shift[:, None])
    if gates:
        torch.testing.assert_close(found[1].expand(2, 7, -1), gates[0][:, None].expand(2, 7, -1))


class First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = self.layer(x, condition)[0]
        return y


class Conditioned(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = self.layer(x, condition)
        return y


# a tracer went inside of them and failed
@pytest.mark.parametrize(
    ("layer", "condition"),
    [
        (layers.ConditionalBatchNorm(4, classes=3), torch.tensor([0, 2])),
        (layers.AdaIN(4), torch.randn(2, 4, 3, 5)),
        (layers.FiLM(4, condition=2), torch.randn(2, 2)),
        (layers.AdaLN(4, condition=2, dim=1), torch.randn(2, 2)),
        (First(layers.AdaLNZero(4, condition=2, dim=1)), torch.randn(2, 2)),
        (layers.SPADE(4, labels=2), torch.randn(2, 2, 3, 3)),
    ],
)
def test_layers_with_a_condition_are_leaves(layer: nn.Module, condition: Tensor) -> None:
    model, x = Conditioned(layer).eval(), torch.randn(2, 4, 6, 5)
    assert torch.equal(torch.fx.symbolic_trace(model)(x, condition), model(x, condition))


PAIR = (torch.ones(2, 4), torch.zeros(2, 4))
WITH_CONDITION: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "cbn": (
        lambda: layers.ConditionalBatchNorm(4, classes=3),
        torch.tensor([0, 2]),
        {"floats": torch.ones(2), "columns": torch.ones(2, 1).long(), "others": torch.tensor([0, 3]), "less": [-1, 0]},
    ),
    "adain": (
        lambda: layers.AdaIN(4),
        torch.randn(2, 4, 3, 5),
        {"channels": torch.randn(2, 3, 5, 5), "one": (PAIR[0],), "whole": torch.ones(2, 4, 3, 5).long()},
    ),
    "film": (
        lambda: layers.FiLM(4, condition=3),
        torch.randn(2, 3),
        {"width": torch.randn(2, 4), "batch": torch.randn(3, 3), "whole": torch.ones(2, 3).long()},
    ),
    "film pair": (
        lambda: layers.FiLM(4),
        PAIR,
        {"vectors": torch.randn(2, 3), "samples": (torch.ones(3, 4), torch.zeros(3, 4)), "words": ("a", "b")},
    ),
    "adaln": (
        lambda: layers.AdaLN(4, condition=3, dim=1),
        torch.randn(2, 3),
        {"width": torch.randn(2, 4), "tokens": torch.randn(2, 5, 3)},
    ),
    "adaln-zero": (
        lambda: First(layers.AdaLNZero(4, condition=3, dim=1)),
        torch.randn(2, 3),
        {"width": torch.randn(2, 4), "batch": torch.randn(3, 3)},
    ),
    "spade": (
        lambda: layers.SPADE(4, labels=2, hidden=3),
        torch.randn(2, 2, 3, 3),
        {"labels": torch.randn(2, 3, 6, 5), "batch": torch.randn(1, 2, 6, 5), "whole": torch.ones(2, 2, 6, 5).long()},
    ),
}


# Bug: torch's errors of embeddings and products of matrices came through, or Python's, which name no argument.
@pytest.mark.parametrize("name", WITH_CONDITION)
def test_a_wrong_condition_is_named(name: str) -> None:
    make, _, wrong = WITH_CONDITION[name]
    for given in (None, "words", *wrong.values()):
        with pytest.raises(InputError, match="expected"):
            make()(torch.randn(2, 4, 6, 5), given)


# Bug: y was float32 of any input in half precision; the maps' convolutions gave y their own memory format.
@pytest.mark.parametrize("name", WITH_CONDITION)
def test_what_comes_out_is_as_what_went_in(name: str) -> None:
    make, condition, _ = WITH_CONDITION[name]
    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert make()(x.to(dtype), condition).dtype == dtype
    y = make()(x, condition)
    assert y.is_contiguous(memory_format=torch.channels_last)
    none = tuple(v[:0] for v in condition) if isinstance(condition, tuple) else condition[:0]
    for layer in (make(), make().eval()):
        assert layer(x[:0], none).shape == (0, 4, 6, 5)


@pytest.mark.parametrize(
    "wrong", ["cbn:classes=0", "film:condition=0", "adaln:condition=1.5", "spade:labels=0", "spade:hidden=0"]
)
def test_sizes_of_conditions_are_whole_numbers(wrong: str) -> None:
    name, value = wrong.partition(":")[2].split("=")
    with pytest.raises(UsageError, match=f"{name}={value}; expected a whole number of at least 1"):
        normlab.make_norm(wrong, 4)


@pytest.mark.parametrize("channels", [-1, 2.5, "8", None, True])
def test_channels_are_a_whole_number(channels: Any) -> None:
    for name in ("bn", "adain"):
        with pytest.raises(UsageError, match=r"channels=.*expected a whole number"):
            normlab.make_norm(name, channels)


def test_spade() -> None:
    layer: Any = normlab.make_norm("spade", CHANNELS, labels=2, hidden=4).double()
    x, labels = planes(), torch.randn(6, 2, 6, 8, dtype=torch.float64)
    hidden = functional.relu(layer.mlp_shared[0](labels[:, :, ::2, ::2]))
    want = (1 + layer.mlp_gamma(hidden)) * standard(x, (0, 2, 3), 1e-5) + layer.mlp_beta(hidden)
    torch.testing.assert_close(layer(x, labels), want)


# --- of weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3, groups=2), nn.Linear(5, 4), nn.Conv1d(2, 4, 3)], ids=str)
def test_weights(layer: Any) -> None:
    torch.manual_seed(0)  # the power method takes longer the nearer the two largest singular values are
    layer.reset_parameters()
    w = layer.weight.detach().clone().flatten(1)
    mean, var = w.mean(1, keepdim=True), w.var(1, unbiased=False, keepdim=True)
    wants = {
        "ws": (w - mean) / (var + 1e-5).sqrt(),
        "sws": (w - mean) / (var * w.shape[1]).clamp(min=1e-4).sqrt(),
        "wn": w,  # as it was, in two parts
        "spectral": w / torch.linalg.matrix_norm(w, 2),
    }
    for how, want in wants.items():
        copy = deepcopy(layer)
        normalize_weights(copy, how)
        if how == "spectral":  # a step of the power method each
            for _ in range(60):
                found = copy.weight
        else:
            found = copy.weight
        torch.testing.assert_close(found.flatten(1), want, rtol=1e-4, atol=1e-5)
        found.sum().backward()
        with pytest.raises(UsageError, match="parametrized already"):
            normalize_weights(copy, how)


# the layers before the one that it could not take had been changed already
def test_a_mistake_changes_no_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), normalize_weights(nn.Conv2d(4, 4, 3), "ws"))
    before = list(model.state_dict())
    with pytest.raises(UsageError, match="'1' is parametrized already"):
        normalize_weights(model, "ws")
    assert list(model.state_dict()) == before
    for how in ("bn", "nothing"):
        with pytest.raises(UsageError, match="expected one of: ws, sws, wn, spectral"):
            normalize_weights(model, how)


def test_a_network_with_normalized_weights() -> None:
    model = normlab.models.build_model("resnet8", "gn:groups=2+ws", num_classes=3, in_channels=1, seed=0)
    plain = normlab.models.build_model("resnet8", "gn:groups=2", num_classes=3, in_channels=1, seed=0)
    normalize_weights(plain, "ws", linear=False)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model(x), plain(x))
    alone = normlab.models.build_model("resnet8", "sws", num_classes=3, in_channels=1, seed=0)
    assert any("gain" in name or "parametrizations" in name for name in alone.state_dict())


# Bug: another name of a norm of weights, alone, normalized nothing.
def test_a_norm_of_weights_by_any_name() -> None:
    for entry in map(normlab.norms.describe, normlab.norm_names()):
        for name in (entry.name, *entry.aliases):
            assert normlab.norms.weights_of(name) == (entry.name if entry.of_weights else None), name
            if entry.of_weights:
                assert normlab.norms.weights_of(f"gn:groups=2+{name}") == entry.name


@pytest.mark.parametrize("spec", ["gn+bn", "gn+nothing", "+ws"])
def test_wrong_weights(spec: str) -> None:
    with pytest.raises(UsageError):
        normlab.make_norm(spec, 4)


def test_all_stands_for_every_norm_that_needs_images_alone() -> None:
    found = listed_norms("all,gn+ws,bn")
    assert set(found) == {n for n in normlab.norm_names() if normlab.norms.describe(n).given is None} | {"gn+ws"}
    assert len(found) == len(set(found))


GIVEN: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "ln-elementwise": ({"size": (3, 4)}, lambda n: ()),
    "cbn": ({}, lambda n: (torch.arange(n) % 3,)),
    "adain": ({}, lambda n: ((torch.ones(n, CHANNELS), torch.zeros(n, CHANNELS)),)),
    "film": ({}, lambda n: ((torch.ones(n, CHANNELS), torch.zeros(n, CHANNELS)),)),
    "adaln": ({"dim": 1}, lambda n: (torch.ones(n, CHANNELS),)),
    "adaln-zero": ({"dim": 1}, lambda n: (torch.ones(n, CHANNELS),)),
    "spade": ({}, lambda n: (torch.ones(n, 1, 3, 4),)),
}


def answered(name: str, x: Tensor) -> Tensor:
    """y of a fresh layer in training."""
    options, more = GIVEN.get(name, ({}, lambda n: ()))
    y = normlab.make_norm(name, CHANNELS, **options)(x, *more(len(x)))
    return y[0] if isinstance(y, tuple) else y


# Bug: brn, ghost, sn, ibn-a, mobn, vobn, power, evonorm-b0, cbn and spade were said not to depend on the batch.
@pytest.mark.parametrize("name", normlab.norm_names())
def test_which_depend_on_the_batch(name: str) -> None:
    x = planes().float()
    other = x.clone()
    other[1:] = 3 * other[1:] + 1
    torch.manual_seed(0)
    y = answered(name, x)
    torch.manual_seed(0)
    assert torch.equal(y[0], answered(name, other)[0]) != normlab.norms.describe(name).batchwise


# Bug: sn, ibn-a, ibn-b and adain were not said to take statistics of single planes.
def test_which_take_statistics_of_single_planes() -> None:
    found = {n for n in normlab.norm_names() if normlab.norms.describe(n).instances}
    assert found == {"in", "bin", "sn", "ibn-a", "ibn-b", "adain"}


@pytest.mark.slow
def test_members_in_a_study(tmp_path: Any) -> None:
    """A layer of each kind: with memory, in parts, element-wise, of positions, of weights."""
    small = "--model resnet8:width=4 --epochs 1 --seeds 1 --limit-train 64 --limit-eval 64 --jobs 1 --out out"
    names = ("brn", "ghost:size=8", "evonorm-b0", "channel-ln", "gn+ws")
    run(tmp_path, "-m", "normlab", "compare", "digits", "--norms", ",".join(names), *small.split())
    found = (tmp_path / "out" / "results.json").read_text()
    assert all(f'"{name}"' in found for name in names)


def test_padded_sequences_are_learned() -> None:
    """Masked batch norm in a network that tells sequences apart whatever lies in their padding."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    lengths = torch.randint(3, 9, (64,), generator=generator)
    mask = torch.arange(8) < lengths[:, None]
    x = torch.randn(64, 4, 8, generator=generator)
    label = ((x[:, 0] * mask).sum(1) > 0).long()
    first, norm, last = nn.Conv1d(4, 8, 1), normlab.make_norm("bn", 8, act="relu"), nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*first.parameters(), *norm.parameters(), *last.parameters()], 0.02)

    def logits(x: Tensor) -> Tensor:
        return last(norm(first(x), mask=mask).sum(2))

    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(logits(x), label).backward()
        optimizer.step()
    norm.eval()
    with torch.no_grad():
        padded = logits(torch.where(mask[:, None], x, 1e6))
        torch.testing.assert_close(padded, logits(x))
    assert (padded.argmax(1) == label).float().mean() > 0.9
