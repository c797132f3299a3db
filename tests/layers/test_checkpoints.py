"""Torch's checkpoints load unchanged, both ways; layers survive copying, pickling and saving."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import normlab
from normlab.layers import norms as layers
from tests.layers.parity import NORMS, Case, our_layer, randomize

PAIRS: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = [
    (lambda: layers.BatchNorm(8), lambda: nn.BatchNorm2d(8)),
    (lambda: layers.BatchNorm(8), lambda: nn.BatchNorm1d(8)),
    (lambda: layers.BatchNorm(8), lambda: nn.BatchNorm3d(8)),
    (lambda: layers.BatchNorm(8, affine=False), lambda: nn.BatchNorm2d(8, affine=False)),
    (lambda: layers.BatchNorm(8, track_running_stats=False), lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    (lambda: layers.InstanceNorm(8), lambda: nn.InstanceNorm2d(8)),
    (lambda: layers.InstanceNorm(8, affine=True), lambda: nn.InstanceNorm2d(8, affine=True)),
    (
        lambda: layers.InstanceNorm(8, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    ),
    (lambda: layers.GroupNorm(2, 8), lambda: nn.GroupNorm(2, 8)),
    (lambda: layers.GroupNorm(2, 8, affine=False), lambda: nn.GroupNorm(2, 8, affine=False)),
    (lambda: layers.LayerNorm((8, 5, 4)), lambda: nn.LayerNorm((8, 5, 4))),
    (lambda: layers.LayerNorm(4, bias=False), lambda: nn.LayerNorm(4, bias=False)),
    (lambda: layers.LayerNorm(4, elementwise_affine=False), lambda: nn.LayerNorm(4, elementwise_affine=False)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: str(pair[1]()))
@pytest.mark.parametrize("from_torch", [True, False])
def test_both_ways(pair: tuple, from_torch: bool) -> None:
    source, target = pair[::-1] if from_torch else pair
    trained, fresh = source(), target()
    randomize(trained, torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == list(fresh.state_dict())
    fresh.load_state_dict(state)  # strict
    x = torch.randn(3, 8, 5, 4)
    shape = x.flatten(2) if isinstance(trained, nn.BatchNorm1d) or isinstance(fresh, nn.BatchNorm1d) else x
    shape = x[..., None] if isinstance(trained, nn.BatchNorm3d) or isinstance(fresh, nn.BatchNorm3d) else shape
    for layer in (trained, fresh):
        layer.eval()
    torch.testing.assert_close(fresh(shape), trained(shape))


def test_whole_network() -> None:
    """A network of torch's layers, its norms replaced by ours, loads the same checkpoint and answers the same."""

    def network(batch_norm: Callable, group_norm: Callable) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), batch_norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), group_norm(4, 8), nn.Flatten()
        )

    stock = network(nn.BatchNorm2d, nn.GroupNorm)
    x = torch.randn(4, 3, 8, 8)
    stock(x)
    ours = network(layers.BatchNorm, layers.GroupNorm)
    ours.load_state_dict(stock.state_dict())
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))


@pytest.mark.parametrize("name", ["eps", "momentum", "affine", "track_running_stats", "num_features", "training"])
def test_attributes_of_batch_norm(name: str) -> None:
    assert getattr(layers.BatchNorm(8), name) == getattr(nn.BatchNorm2d(8), name)


@pytest.mark.parametrize("name", ["eps", "affine", "num_groups", "num_channels"])
def test_attributes_of_group_norm(name: str) -> None:
    assert getattr(layers.GroupNorm(2, 8), name) == getattr(nn.GroupNorm(2, 8), name)


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (layers.BatchNorm, nn.BatchNorm2d),
        (layers.InstanceNorm, nn.InstanceNorm2d),
        (layers.GroupNorm, nn.GroupNorm),
        (layers.LayerNorm, nn.LayerNorm),
    ],
)
def test_signatures(ours: type, stock: type) -> None:
    """torch's arguments, in torch's order, with torch's defaults; newer ones may be missing, `act` is ours."""
    import inspect

    mine, theirs = (
        [(p.name, p.default) for p in inspect.signature(c).parameters.values() if p.name not in ("bias", "act")]
        for c in (ours, stock)
    )
    assert mine == theirs


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


def through_file(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [*COPIES.values(), through_file], ids=[*COPIES, "torch.save"])
@pytest.mark.parametrize("norm", [*NORMS, "none", "torch-bn"])
def test_copies(norm: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    layer = normlab.make_norm(norm, 8)
    randomize(layer, torch.Generator().manual_seed(0))
    twin = copied(layer)
    x = torch.randn(3, 8, 5, 4)
    assert torch.equal(twin(x), layer(x))
    for name, v in layer.state_dict().items():
        assert torch.equal(twin.state_dict()[name], v), name
        assert twin.state_dict()[name].data_ptr() != v.data_ptr(), f"{name} is shared"
    assert repr(twin) == repr(layer)


def test_copy_of_a_layer_that_has_been_used() -> None:
    layer = our_layer(Case("bn"))
    layer(torch.randn(3, 8, 5, 4, requires_grad=True)).sum().backward()
    assert torch.equal(copy.deepcopy(layer).running_mean, layer.running_mean)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    layer, fresh = our_layer(Case("bin")), our_layer(Case("bin"))
    randomize(layer, torch.Generator().manual_seed(0))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in layer.state_dict().items())


def test_conversions() -> None:
    """`.double()` and a meta device reach parameters and statistics, as in any module."""
    layer = our_layer(Case("bin")).double()
    assert {v.dtype for k, v in layer.state_dict().items() if k != "num_batches_tracked"} == {torch.float64}
    assert layer(torch.randn(3, 8, 4, dtype=torch.float64)).dtype == torch.float64
    meta = normlab.make_norm("bn", 8, device="meta")
    assert meta.weight.is_meta
    assert meta.running_var.is_meta


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (layers.BatchNorm(8, momentum=None), "BatchNorm(8, eps=1e-05, momentum=None, affine=True)"),
        (layers.GroupNorm(2, 8), "GroupNorm(8, groups=2, eps=1e-05, affine=True)"),
        (normlab.make_norm("ln", 8), "Norm('ln', 8, eps=1e-05, affine=True)"),
        (layers.LayerNorm((8, 4)), repr(torch.nn.LayerNorm((8, 4)))),
    ],
)
def test_repr(layer: nn.Module, shown: str) -> None:
    assert repr(layer) == shown
