"""Each member beside its paper's formula in float64, written here in torch's operations; then its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.errors import InputError, UsageError
from normlab.norms import describe
from tests.layers.parity import BACKENDS

CHANNELS = 8


def planes(**sizes: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    n = sizes.get("n", 6)
    return 2 * torch.randn(n, CHANNELS, 3, 4, dtype=torch.float64, generator=generator) + 0.5


def made(spec: str) -> Any:
    """A layer of float64 with parameters and running statistics that are no identity."""
    generator = torch.Generator().manual_seed(5)
    layer: Any = normlab.make_norm(spec, CHANNELS).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(0.3 + torch.rand(p.shape, dtype=p.dtype, generator=generator))
        for name, buffer in layer.named_buffers():
            if name in ("running_mean", "running_var"):
                buffer.copy_(0.6 + torch.rand(buffer.shape, dtype=buffer.dtype, generator=generator))
    return layer


def row(v: Tensor) -> Tensor:
    return v.reshape(1, -1, 1, 1)


def moments(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mean = x.mean(over, keepdim=True)
    return mean, (x - mean).square().mean(over, keepdim=True)


def standard(x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    mean, var = moments(x, over)
    return (x - mean) / (var + eps).sqrt()


def renormalized(x: Tensor, layer: Any, r_max: float, d_max: float) -> Tensor:
    mean, var = moments(x, (0, 2, 3))
    s, known = (var + layer.eps).sqrt(), (row(layer.running_var) + layer.eps).sqrt()
    r = (s / known).clamp(1 / r_max, r_max).detach()
    d = ((mean - row(layer.running_mean)) / known).clamp(-d_max, d_max).detach()
    return row(layer.weight) * ((x - mean) / s * r + d) + row(layer.bias)


def in_parts(x: Tensor, layer: Any, parts: int) -> Tensor:
    y = torch.cat([standard(part, (0, 2, 3), layer.eps) for part in x.chunk(parts)])
    return row(layer.weight) * y + row(layer.bias)


def switched(x: Tensor, layer: Any) -> Tensor:
    found = [moments(x, over) for over in ((2, 3), (1, 2, 3), (0, 2, 3))]
    shares = [
        torch.cat([getattr(layer, f"{moment}_weight_{over}") for over in ("in", "ln", "bn")]).softmax(0)
        for moment in ("mean", "var")
    ]
    mean, var = (sum(share[i] * found[i][k] for i in range(3)) for k, share in enumerate(shares))
    return row(layer.weight) * (x - mean) / (var + layer.eps).sqrt() + row(layer.bias)


def half_and_half(x: Tensor, layer: Any, first: int) -> Tensor:
    y = torch.cat([standard(x[:, :first], (2, 3), layer.eps), standard(x[:, first:], (0, 2, 3), layer.eps)], 1)
    return row(layer.weight) * y + row(layer.bias)


def responding(x: Tensor, layer: Any) -> Tensor:
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    return row(layer.weight) * (x * (g / (g.mean(1, keepdim=True) + 1e-6))) + row(layer.bias) + x


def by_root_mean_square(x: Tensor, layer: Any) -> Tensor:
    return row(layer.weight) * x / (x.square().mean((0, 2, 3), keepdim=True) + layer.eps).sqrt() + row(layer.bias)


def without_mean(x: Tensor, layer: Any) -> Tensor:
    return row(layer.weight) * x / (moments(x, (0, 2, 3))[1] + layer.eps).sqrt() + row(layer.bias)


def frozen(x: Tensor, layer: Any) -> Tensor:
    y = (x - row(layer.running_mean)) / (row(layer.running_var) + layer.eps).sqrt()
    return row(layer.weight) * y + row(layer.bias)


PAPERS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "brn": lambda x, layer: renormalized(x, layer, 1, 0),  # at the first steps of the schedule
    "brn:r_max=1.5:d_max=0.4": lambda x, layer: renormalized(x, layer, 1.5, 0.4),
    "brn:r_max=100:d_max=100": lambda x, layer: renormalized(x, layer, 100, 100),
    "ghost:size=2": lambda x, layer: in_parts(x, layer, 3),
    "ghost:parts=4": lambda x, layer: in_parts(x, layer, 4),
    "ghost": lambda x, layer: in_parts(x, layer, 1),
    "sn": switched,
    "ibn-a": lambda x, layer: half_and_half(x, layer, 4),
    "ibn-a:ratio=0.25": lambda x, layer: half_and_half(x, layer, 2),
    "mobn": lambda x, layer: x - x.mean((0, 2, 3), keepdim=True) + row(layer.bias),
    "vobn": without_mean,
    "power": by_root_mean_square,
    "grn": responding,
    "frozen": frozen,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", PAPERS)
def test_paper(spec: str, backend: str) -> None:
    layer = made(spec)
    x = planes().requires_grad_()
    want = PAPERS[spec](x, layer)
    dy = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(7))
    inputs = [x, *layer.parameters()]
    wanted = torch.autograd.grad(want, inputs, dy)
    with normlab.use_backend(backend):
        y = layer(x)
        found = torch.autograd.grad(y, inputs, dy)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("spec", [s for s in PAPERS if not describe(s.partition(":")[0]).running])
def test_evaluation_is_training_without_running_statistics(spec: str) -> None:
    layer, x = made(spec), planes()
    torch.testing.assert_close(layer.eval()(x), PAPERS[spec](x, layer))


@pytest.mark.parametrize("spec", ["brn", "ghost:size=2", "frozen"])
def test_evaluation_is_that_of_batch_norm(spec: str) -> None:
    layer, x = made(spec), planes()
    torch.testing.assert_close(layer.eval()(x), frozen(x, layer))


def test_running_statistics_of_ghost_norm_move_by_each_part_in_turn() -> None:
    layer, stock, x = made("ghost:size=2"), nn.BatchNorm2d(CHANNELS).double(), planes()
    stock.load_state_dict(layer.state_dict())
    layer(x)
    for part in x.chunk(3):
        stock(part)
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


def test_a_part_of_one_value() -> None:
    layer = normlab.make_norm("ghost:size=2", 4)
    with pytest.raises(ValueError, match="a part of the batch: expected more than 1 value per channel"):
        layer(torch.randn(3, 4))


@pytest.mark.parametrize(
    ("seen", "r_max", "d_max"), [(0, 1, 0), (5000, 1, 0), (15000, 1 + 2 * 10000 / 35000, 2.5), (90000, 3, 5)]
)
def test_schedule_of_the_clips(seen: int, r_max: float, d_max: float) -> None:
    layer = made("brn")
    layer.num_batches_tracked.fill_(seen)
    x = 9 * planes()
    torch.testing.assert_close(layer(x), renormalized(x, made("brn"), r_max, d_max), rtol=1e-6, atol=1e-6)


def test_a_pooling_over_parts_in_a_norm_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling over 4 parts of n was batch norm over all of n."""
    from normlab.norms import family, standardize

    monkeypatch.setattr(family, "_REGISTRY", dict(family._REGISTRY))
    family.register_norm("in-parts", running=True)(lambda m, p: standardize(m.pool("n", parts=4), p))
    layer, x = made("in-parts"), planes(n=7).requires_grad_()
    want = in_parts(x, layer, 4)
    y = layer(x)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(v.square().sum(), x)[0] for v in (y, want)))


def test_nothing_learns_in_a_frozen_norm() -> None:
    layer = made("frozen").train()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(planes().requires_grad_()).sum().backward()
    assert not layer.training
    assert not list(layer.parameters())
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer.load_state_dict(nn.BatchNorm2d(CHANNELS).state_dict())
    layer.load_state_dict(dict(nn.BatchNorm2d(CHANNELS).state_dict()))  # a file that keeps no versions: it was refused


def test_a_plane_of_zeros_has_a_gradient_under_global_response() -> None:
    layer, x = made("grn"), planes()
    x[:, 2] = 0
    layer(x.requires_grad_()).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_checkpoints_of_the_authors() -> None:
    numbers = torch.arange(1.0, 5)
    grn = normlab.make_norm("grn", 4)
    grn.load_state_dict({"gamma": numbers.reshape(1, 1, 1, 4), "beta": -numbers.reshape(1, 1, 1, 4)})
    assert grn.weight.tolist() == numbers.tolist()
    sn = normlab.make_norm("sn", 4)
    state = {k: v for k, v in sn.state_dict().items() if "_weight" not in k}
    state |= {"weight": numbers.reshape(1, 4, 1, 1), "mean_weight": numbers[:3], "var_weight": numbers[1:]}
    sn.load_state_dict(state)
    assert (sn.mean_weight_ln.item(), sn.var_weight_bn.item()) == (2, 4)
    ibn: Any = normlab.make_norm("ibn-a", 4)
    theirs = nn.ModuleDict({"IN": nn.InstanceNorm2d(2, affine=True), "BN": nn.BatchNorm2d(2)})
    nn.init.constant_(theirs["IN"].weight, 5)
    ibn.load_state_dict(theirs.state_dict())
    assert ibn.weight.tolist() == [5, 5, 1, 1]


# Bugs: a frozen norm of no statistics took those of the batch, and the average of uncounted batches failed in a call.
@pytest.mark.parametrize(("spec", "option"), [("frozen", "track_running_stats"), ("evonorm-b0", "momentum")])
def test_statistics_that_are_needed(spec: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"{spec}.*{option}"):
        normlab.make_norm(spec, 4, **{option: False if option == "track_running_stats" else None})


@pytest.mark.parametrize("spec", ["brn:r_max=0.5", "brn:d_max=-1", "ghost:size=0", "ghost:parts=1.5", "sn:size=3"])
def test_wrong_options(spec: str) -> None:
    with pytest.raises(UsageError, match=spec.partition(":")[0]):
        normlab.make_norm(spec, 4)


# Bug: where it was left out, the function that makes it came to the grid function: a TypeError.
def test_a_constant_of_each_channel_must_be_given() -> None:
    from normlab.kernels import stages

    x = planes().numpy()
    with pytest.raises(ValueError, match=r"norm 'ibn-a': params has no 'instances'.*give one of shape \(8,\)"):
        stages.forward("ibn-a", x, {})
    first = torch.arange(CHANNELS).lt(4).double().numpy()
    want = made("ibn-a")
    torch.nn.init.ones_(want.weight)
    torch.nn.init.zeros_(want.bias)
    y, _ = stages.forward("ibn-a", x, {"instances": first})
    torch.testing.assert_close(torch.from_numpy(y), want(planes()).detach())


def test_names() -> None:
    for name in normlab.norm_names():
        entry = describe(name)
        assert entry.formula, name
        assert all(describe(alias) is entry for alias in entry.aliases)


# --- masks -----------------------------------------------------------------------------------------------------------

MASKED = ("bn", "in", "bin", "ln", "gn:groups=2", "rms", "frn", "sn", "mobn", "vobn", "power", "grn", "ibn-a")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", MASKED)
def test_a_mask_of_everything_changes_nothing(spec: str, training: bool) -> None:
    layers, x = [made(spec).train(training) for _ in range(2)], planes()
    torch.testing.assert_close(layers[0](x, mask=torch.ones(6, 3, 4)), layers[1](x))
    for a, b in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("spec", MASKED)
def test_what_is_masked_does_not_matter(spec: str) -> None:
    """Ragged sequences: of different lengths, the last one empty, with NaN in their padding."""
    lengths = torch.tensor([7, 3, 1, 5, 0])
    mask = torch.arange(7) < lengths[:, None]
    x = torch.randn(5, CHANNELS, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = made(spec)
    y = layer(torch.where(mask[:, None], x, torch.nan), mask=mask)
    other = made(spec)(torch.where(mask[:, None], x, 9.0), mask=mask[:, None])
    assert torch.equal(y, other)
    assert not y.masked_select(~mask[:, None]).any()


@pytest.mark.parametrize("spec", ["bn", "mobn"])
def test_masked_batch_norm_is_that_of_all_elements_in_a_row(spec: str) -> None:
    mask = torch.arange(12).reshape(3, 4) < torch.tensor([12, 5, 1, 9, 3, 7])[:, None, None]
    x = planes().requires_grad_()
    layer, flat = made(spec), made(spec)
    rows = x.movedim(1, -1)[mask]  # (elements, C)
    want, y = flat(rows), layer(x, mask=mask)
    torch.testing.assert_close(y.movedim(1, -1)[mask], want)
    torch.testing.assert_close(*(torch.autograd.grad(v.square().sum(), x)[0] for v in (y, want)))
    torch.testing.assert_close(layer.running_var, flat.running_var)


# which channels were instances' was in no file, so a layer built without memory had garbage there, or nothing
@pytest.mark.parametrize("assign", [False, True])
def test_constants_of_a_layer_without_memory(assign: bool) -> None:
    layer, x = made("ibn-a").float().eval(), planes().float()
    with torch.device("meta"):
        empty = normlab.make_norm("ibn-a", CHANNELS).eval()
    if not assign:
        empty = empty.to_empty(device="cpu")
        empty.instances.fill_(float("nan"))
    empty.load_state_dict(layer.state_dict(), assign=assign)
    torch.testing.assert_close(empty(x), layer(x))


# the statistics of nothing, 0, were averaged in
@pytest.mark.parametrize("spec", ["bn", "bin", "sn", "mobn"])
def test_a_mask_of_nothing_updates_nothing(spec: str) -> None:
    layer = made(spec)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    assert not layer(planes(), mask=torch.zeros(6, 3, 4)).any()
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


# without a mask it is an error, and with one it was the bias
@pytest.mark.parametrize("spec", ["bn", "sn", "ibn-a"])
def test_one_value_that_a_mask_keeps_has_no_variance(spec: str) -> None:
    mask = torch.zeros(6, 3, 4)
    mask[2, 1, 1] = 1
    layer = made(spec)
    with pytest.raises(ValueError, match=r"1 value per channel when training, got a mask of shape \(6, 3, 4\)"):
        layer(planes(), mask=mask)
    layer.eval()(planes(), mask=mask)


# Bug: what is no tensor gave Python's errors, and a mask of 0 and -inf was taken for its opposite.
@pytest.mark.parametrize("spec", ["bn", "in", "ghost:size=2"])
def test_wrong_mask(spec: str) -> None:
    layer, x = normlab.make_norm(spec, CHANNELS), planes().float()
    for wrong in (torch.ones(6, 4), torch.ones(6, CHANNELS, 3, 4), "mask", [1, 2]):
        with pytest.raises(InputError, match=r"mask: expected shape \(6, 3, 4\) or \(6, 1, 3, 4\)"):
            layer(x, mask=wrong)
    for number in (float("nan"), float("-inf"), 0.5):
        with pytest.raises(InputError, match="mask: expected true and false, or 1 and 0"):
            layer(x, mask=torch.full((6, 3, 4), number))


# Bug: no samples could not be reshaped.
@pytest.mark.parametrize("spec", MASKED)
def test_a_mask_of_no_samples(spec: str) -> None:
    layer, x = made(spec), planes()[:0]
    for training in (True, False):
        assert layer.train(training)(x, mask=torch.ones(0, 3, 4)).shape == x.shape
    assert all(torch.isfinite(v).all() for v in layer.state_dict().values())
