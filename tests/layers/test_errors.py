"""What the layers refuse, and that the message says why and what to do."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

import normlab
from normlab.errors import UsageError
from normlab.layers import norms as layers
from tests.layers.parity import BACKENDS, NORMS, Case, backend, our_layer


@pytest.mark.parametrize("norm", ["bn", "bin"])
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1), (1, 4, 1, 1), (1, 4, 1, 1, 1)])
def test_batch_of_one_value(norm: str, shape: tuple[int, ...]) -> None:
    layer = our_layer(Case(norm, shape))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(ValueError, match="expected more than 1 value per channel when training") as caught:
        layer(torch.randn(shape))
    assert "the variance of one value is zero" in str(caught.value)
    assert "larger batch" in str(caught.value)
    assert str(tuple(shape)) in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items()), "statistics were touched"


def test_batch_of_one_value_is_fine_in_evaluation() -> None:
    layer = layers.BatchNorm(4).eval()
    x = torch.randn(1, 4)
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)
    with pytest.raises(ValueError, match="more than 1 value"):  # no running statistics: it would use the batch
        layers.BatchNorm(4, track_running_stats=False).eval()(x)


@pytest.mark.parametrize("norm", ["in", "bin"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 1, 1)])
def test_instance_of_one_position(norm: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        our_layer(Case(norm, shape))(torch.randn(shape))


def test_group_of_one_value() -> None:
    with pytest.raises(ValueError, match="use fewer groups"):
        layers.GroupNorm(4, 4)(torch.randn(1, 4))


@pytest.mark.parametrize("build", [lambda: normlab.make_norm("gn", 10, groups=4), lambda: layers.GroupNorm(4, 10)])
def test_channels_do_not_divide(build) -> None:
    with pytest.raises(ValueError, match=r"num_channels=10 must be divisible by num_groups=4"):
        build()


@pytest.mark.parametrize("groups", [0, -1])
def test_no_groups(groups: int) -> None:
    with pytest.raises(ValueError, match=f"num_groups={groups}"):
        layers.GroupNorm(groups, 8)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_number_of_channels(norm: str, training: bool) -> None:
    layer = our_layer(Case(norm, (3, 8, 4, 4))).train(training)
    with pytest.raises(
        ValueError, match=r"expected 8 channels in dimension 1, got 4 in an input of shape \(3, 4, 8, 8\)"
    ):
        layer(torch.randn(3, 4, 8, 8))


@pytest.mark.parametrize("norm", NORMS)
def test_integers(norm: str) -> None:
    with pytest.raises(ValueError, match=r"floating-point input, got torch.int64"):
        our_layer(Case(norm))(torch.ones(2, 8, 3, 3, dtype=torch.int64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(8,), (2, 8, 2, 2, 2, 2)])
def test_wrong_rank(norm: str, shape: tuple[int, ...]) -> None:
    if norm == "gn" and len(shape) > 5:  # torch's group norm takes any number of dimensions, and so does ours
        torch.testing.assert_close(our_layer(Case(norm))(x := torch.randn(shape)), nn.GroupNorm(2, 8)(x))
        return
    wanted = "at least 2" if norm == "gn" else "2 to 5"
    with pytest.raises(ValueError, match=f"{wanted} dimensions.*got {len(shape)}D"):
        our_layer(Case(norm))(torch.randn(shape))


def test_error_names_the_layer() -> None:
    for layer, name in [(layers.BatchNorm(4), "BatchNorm"), (normlab.make_norm("ln", 4), "Norm('ln')")]:
        with pytest.raises(ValueError) as caught:
            layer(torch.randn(3, 5, 2))
        assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("batch", "'batch' is not known; expected one of: bn, in, bin, ln, gn, none, torch-bn"),
        ("", "'' is not known"),
        ("gn:groups", "'groups' is not of the form name=value"),
        ("gn:group=4", "no option|group"),
        ("ln:groups=4", "no option 'groups'"),
        ("bn:groups=4", "groups"),
        ("gn:groups=four", "groups"),
        ("gn:groups=2.5", "groups"),
        ("gn:groups=3", "num_channels=8 must be divisible by num_groups=3"),
        ("none:groups=2", "groups"),
        ("torch-bn:groups=2", "groups"),
    ],
)
def test_spec(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        normlab.make_norm(spec, 8)


def test_module_norm_has_no_grid_function() -> None:
    with pytest.raises(UsageError, match="module of its own"):
        layers.Norm("torch-bn", 8)


def test_unknown_backend() -> None:
    with (
        pytest.raises(UsageError, match="'cuda' is not a backend; expected one of: reference, numba_cpu, native_cpu, "),
        normlab.use_backend("cuda"),
    ):
        pass


# --- an empty batch answers an empty batch, as torch ---------------------------------------------------------------

EMPTY: list[tuple[nn.Module, nn.Module, tuple[int, ...]]] = [
    (layers.BatchNorm(4), nn.BatchNorm2d(4), (0, 4, 3, 3)),
    (layers.BatchNorm(4), nn.BatchNorm2d(4), (2, 4, 0, 3)),
    (layers.InstanceNorm(4), nn.InstanceNorm2d(4), (0, 4, 3, 3)),  # torch's affine one fails here
    (layers.GroupNorm(2, 4), nn.GroupNorm(2, 4), (0, 4, 3, 3)),
    (layers.LayerNorm((4, 3, 3)), nn.LayerNorm((4, 3, 3)), (0, 4, 3, 3)),
    (layers.LayerNorm(3), nn.LayerNorm(3), (0, 4, 3, 3)),
]


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize(("ours", "stock", "shape"), EMPTY, ids=lambda v: str(v))
def test_empty(ours: nn.Module, stock: nn.Module, shape: tuple[int, ...], backend_name: str) -> None:
    answers = []
    for layer in (deepcopy(ours), deepcopy(stock)):
        x = torch.randn(shape, requires_grad=True)
        with backend(backend_name):
            y = layer(x)
            answers.append((y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()]), *layer.state_dict().values()))
    for got, want in zip(*answers, strict=True):
        torch.testing.assert_close(got, want)


# Bug: "in:affine=False" had an affine part, as words are true; "bn:foo=1" was refused in a constructor's words.
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bn:foo=1", "it has no option 'foo'; its options: act, affine"),
        ("none:foo=1", "it has no option 'foo'"),
        ("torch-bn:foo=1", "it has no option 'foo'"),
        ("bn:momentum=2=3", "momentum='2=3'; expected a number"),
        ("gn:groups=x", "groups='x'; expected a number"),
        ("bn:affine=yes", "affine='yes'; expected true or false"),
    ],
)
def test_options_in_a_name(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        normlab.make_norm(spec, 8)


def test_words_in_a_name() -> None:
    assert list(normlab.make_norm("in:affine=False", 8).parameters()) == []
    assert len(list(normlab.make_norm("bn:bias=false", 8).parameters())) == 1
    assert normlab.make_norm("bn:momentum=None", 8).momentum is None
