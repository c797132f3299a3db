"""Our layers beside torch's of the same name: the same results and the same errors, whatever is done to their state."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import normlab
from normlab import layers
from normlab.norms import Affine, standardize
from normlab.norms.grid import average

PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], tuple[Any, ...], tuple[int, ...]]] = {
    "bn1": (layers.BatchNorm1d, nn.BatchNorm1d, (4,), (5, 4)),
    "bn2": (layers.BatchNorm2d, nn.BatchNorm2d, (4,), (3, 4, 2, 3)),
    "bn3": (layers.BatchNorm3d, nn.BatchNorm3d, (4,), (2, 4, 2, 3, 2)),
    "in1": (layers.InstanceNorm1d, nn.InstanceNorm1d, (4, 1e-5, 0.1, True, True), (3, 4, 5)),
    "in2": (layers.InstanceNorm2d, nn.InstanceNorm2d, (4, 1e-5, 0.1, True, True), (3, 4, 2, 3)),
    "in3": (layers.InstanceNorm3d, nn.InstanceNorm3d, (4, 1e-5, 0.1, True, True), (2, 4, 2, 3, 2)),
    "in2-plain": (layers.InstanceNorm2d, nn.InstanceNorm2d, (4,), (3, 4, 2, 3)),
    "gn": (layers.GroupNorm, nn.GroupNorm, (2, 4), (3, 4, 2, 3)),
    "ln": (layers.LayerNorm, nn.LayerNorm, (4,), (3, 2, 4)),
    "ln2": (layers.LayerNorm, nn.LayerNorm, ((2, 4),), (3, 2, 4)),
    "rms": (layers.RMSNorm, nn.RMSNorm, (4,), (3, 2, 4)),
}
STATE = ("weight", "bias", "running_mean", "running_var")


def outcome(layer: nn.Module, x: Tensor) -> Any:
    """What a forward pass gives: its output and the state after it, or the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            y = layer(x)
        except Exception as error:
            return error
    return y, {k: v for k in STATE if (v := getattr(layer, k, None)) is not None}


def same(ours: nn.Module, stock: nn.Module, x: Tensor) -> None:
    got, want = outcome(ours, x), outcome(stock, x)
    if isinstance(want, Exception):
        assert isinstance(got, type(want)), f"torch raises {want!r}, ours {got!r}"
    else:
        assert not isinstance(got, Exception), f"torch computes, ours raises {got!r}"
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def pair(name: str, training: bool = True) -> tuple[nn.Module, nn.Module, Tensor]:
    ours, stock, arguments, shape = PAIRS[name]
    pair = ours(*arguments).train(training), stock(*arguments).train(training)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    return *pair, x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_length_of_every_parameter_and_buffer(name: str, training: bool) -> None:
    """Bug: the kernels read as many numbers as x has channels, whatever was there: out of bounds, or broadcast."""
    for part in STATE:
        for length in (0, 1, 3, 8, 4096):
            ours, stock, x = pair(name, training)
            if getattr(stock, part, None) is None:
                continue
            for layer in (ours, stock):
                v = torch.ones(length)
                setattr(layer, part, nn.Parameter(v) if part in ("weight", "bias") else v)
            with pytest.raises(RuntimeError) as caught:
                stock(x)
            with pytest.raises(RuntimeError) as ours_caught:
                ours(x)
            if part != "bias":  # torch's group norm says the shape of the weight there
                assert str(ours_caught.value).startswith(str(caught.value))


def test_length_in_channel_norm() -> None:
    layer = layers.ChannelNorm(4)
    for length in (0, 1, 3, 8):
        layer.weight = nn.Parameter(torch.ones(length))
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 4, 3))


EDITS = {
    "eps": [1e-3, 1.0, 0.0, -1e-3, 1, "a", None],
    "momentum": [None, 0.0, 1.0, 0.5],
    "track_running_stats": [True, False],
    "training": [True, False],
    "affine": [True, False],
    "running_mean": [None],
    "running_var": [None],
    "num_batches_tracked": [None],
    "weight": [None, "plain"],
    "bias": [None],
}


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
def test_edits(name: str, data: st.DataObject) -> None:
    """Attributes are read when they are needed: whatever was assigned, the outcome is torch's."""
    ours, stock, x = pair(name)
    for _ in range(data.draw(st.integers(1, 3))):
        what = data.draw(st.sampled_from(sorted(EDITS)))
        value = data.draw(st.sampled_from(EDITS[what]))
        for layer in (ours, stock):
            if not hasattr(layer, what):
                continue
            if value == "plain":
                layer._parameters.pop("weight", None)
                layer.weight = torch.full(tuple(getattr(layer, "normalized_shape", (4,))), 0.5)
            else:
                setattr(layer, what, value)
        same(ours, stock, x)


@pytest.mark.parametrize("name", PAIRS)
@given(
    shape=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=6),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.int64, torch.bool]),
)
def test_inputs(name: str, shape: list[int], training: bool, dtype: torch.dtype) -> None:
    ours, stock, _ = pair(name, training)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = outcome(copy.deepcopy(stock), x)
    if dtype == torch.float32 or isinstance(want, Exception):
        same(ours, stock, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_mixed_dtypes(name: str, training: bool) -> None:
    """Bug: a float32 batch norm computed what it was given in float64, where torch's refuses it."""
    refused = 0
    for held, passed in itertools.product((torch.float32, torch.float64, torch.float16, torch.bfloat16), repeat=2):
        ours, stock, x = pair(name, training)
        want = outcome(stock.to(held), x.to(passed))
        if isinstance(want, Exception):
            refused += 1
            same(ours.to(held), stock, x.to(passed))
    assert refused == (0 if name in ("rms", "in2-plain") else 10)


@pytest.mark.parametrize("momentum", ["a", [1]])
def test_momentum_of_instance_norm_is_a_number(momentum: object) -> None:
    ours, stock, x = pair("in2-plain")
    for layer in (ours, stock):
        layer.momentum = momentum
    same(ours, stock, x)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_sample_without_a_batch(kind: int) -> None:
    """Bug: (C, H, W) with H == C was normalized over the wrong axis without an error."""
    ours, stock = getattr(layers, f"InstanceNorm{kind}d")(4), getattr(nn, f"InstanceNorm{kind}d")(4)
    x = torch.randn(4, *[4] * kind)
    torch.testing.assert_close(ours(x), stock(x))


@pytest.mark.parametrize("name", PAIRS)
def test_is_an_instance_of_torchs_class(name: str) -> None:
    """Bug: freezing by class froze nothing, weight decay by class took the wrong parameters."""
    ours, kind = PAIRS[name][0](*PAIRS[name][2]), PAIRS[name][1]
    assert isinstance(ours, kind)
    swapped = normlab.swap_norms(nn.Sequential(kind(*PAIRS[name][2])))[0]
    assert isinstance(swapped, kind)
    assert type(swapped).__module__.startswith("normlab")


def test_update_bn_finds_every_norm_with_running_statistics() -> None:
    """Bug: it left those of batch-instance norm at zero."""
    for layer in (layers.BatchInstanceNorm(3), layers.BatchNorm(3)):
        torch.optim.swa_utils.update_bn([torch.randn(8, 3, 4, 4) + 5], layer)
        torch.testing.assert_close(layer.running_mean, torch.full((3,), 5.0), atol=0.5, rtol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_pruned(name: str) -> None:
    """Bug: KeyError, since the weight was looked for among the parameters."""
    for layer in pair(name)[:2]:
        if layer.weight is None:
            return
        prune.l1_unstructured(layer, "weight", 0.5)
    ours, stock, x = pair(name)
    for layer in (ours, stock):
        prune.ln_structured(layer, "weight", 0.5, n=1, dim=0) if layer.weight.dim() > 1 else prune.l1_unstructured(
            layer, "weight", 0.5
        )
    same(ours, stock, x)
    ours(x).sum().backward()
    assert ours.weight_orig.grad is not None


def all_layers() -> dict[str, nn.Module]:
    return {
        **{k: ours(*arguments) for k, (ours, _, arguments, _) in PAIRS.items() if k in ("bn2", "in2", "gn")},
        "bin": layers.BatchInstanceNorm(4),
        "norm": layers.Norm("ln", 4),
        "rms-planes": layers.Norm("rms", 4),
        "frn": layers.Norm("frn", 4),
        "act": layers.BatchNorm(4, act="silu"),
        "ln": layers.LayerNorm(6),
        "ln-sample": layers.LayerNorm((4, 6, 6)),
        "rms": layers.RMSNorm(6),
        "channel": layers.ChannelNorm(4),
    }


LAYERS = list(all_layers())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_changed_in_place_by_who_comes_next(name: str, layout: torch.memory_format) -> None:
    """Bug: "Output 0 of Normalize is a view and is being modified inplace", of layer, RMS and channel norm."""
    layer = all_layers()[name]
    x = torch.randn(2, 4, 6, 6).to(memory_format=layout)
    found = []
    for consumer in (lambda y: y.add_(1).relu_(), lambda y: torch.relu(y + 1)):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = consumer(layer(given))
        found.append((y, torch.autograd.grad(y.sum(), [given, *layer.parameters()])))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.covering("name", "backend")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpointing_what_changes_between_its_two_runs(name: str, backend: str, recomputed: bool) -> None:
    """Bug: statistics of the first run met the input of the second: gradients were wrong by a tenth."""
    layer = all_layers()[name]

    def gradients(again: bool) -> Any:
        torch.manual_seed(0)
        conv = spectral_norm(nn.Conv2d(3, 4, 3, padding=1))  # each run in training turns its vectors
        x = torch.randn(2, 3, 6, 6, requires_grad=True)
        if again:  # what the second run of checkpointing computes
            conv(x)
        body = lambda v: layer(conv(v)) * 1.5  # noqa: E731
        context = normlab.recomputed_outputs() if recomputed and not again else normlab.use_backend(backend)
        with normlab.use_backend(backend), context:
            y = body(x) if again else checkpoint(body, x, use_reentrant=False)
            fixed = y.detach() if again else None
            del fixed
            loss = (y * torch.linspace(-1, 1, 6)).sum()
            return torch.autograd.grad(loss, [x, *layer.parameters()])

    torch.testing.assert_close(gradients(False), gradients(True), rtol=1e-3, atol=1e-5)


def test_offloaded() -> None:
    """Saved tensors that come back as other tensors are the ones that are used."""
    for name, layer in all_layers().items():
        x = torch.randn(2, 4, 6, 6, requires_grad=True)
        want = torch.autograd.grad(layer(x).square().sum(), x)
        with torch.autograd.graph.saved_tensors_hooks(lambda v: v.detach().clone(), lambda v: v):
            got = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(got, want, msg=name)


@pytest.mark.parametrize("name", PAIRS)
def test_saved_tensors_that_come_back_narrower(name: str) -> None:
    """Bug: float64 that the layers keep came back as float32, and was read as float64: garbage, beyond its end."""
    found = []
    for layer in pair(name)[:2]:
        x = pair(name)[2].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda v: v.double(), lambda v: v.float()):
            y = layer(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_on_another_default_device() -> None:
    """Bug: running statistics of instance norm were averaged on the default device, whatever the layer's was."""
    ours, stock, x = pair("in2")
    with torch.device("meta"):
        same(ours, stock, x)


def test_attributes_read_like_attributes() -> None:
    """Bug: reading `qconfig` of a layer with an activation raised, and it could not be deleted."""
    import inspect

    layer = layers.BatchNorm(4, act="relu")
    inspect.getmembers(layer)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = "any"
    del layer.qconfig


def test_folding_keeps_the_activation_or_refuses() -> None:
    """Bug: `fuse_conv_bn_eval` dropped it."""
    conv = nn.Conv2d(3, 4, 1).eval()
    x = torch.randn(2, 3, 5, 5)
    plain = layers.BatchNorm2d(4).eval()
    torch.testing.assert_close(fuse_conv_bn_eval(conv, plain)(x), plain(conv(x)))
    for layer in (layers.BatchNorm2d(4, act="relu"), layers.BatchInstanceNorm(4)):
        with pytest.raises(RuntimeError, match="restore_norms"):
            fuse_conv_bn_eval(conv, layer.eval())
    for layer in (layers.BatchNorm2d(4, act="relu"), layers.BatchInstanceNorm(4)):
        with pytest.raises(RuntimeError, match="synchronize"):
            nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_attribution_that_looks_for_activations_is_warned() -> None:
    """Bug: captum's guided backpropagation found no ReLU and gave plain gradients."""
    attr = pytest.importorskip("captum.attr")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchNorm2d(4, act="relu"), nn.Flatten(), nn.Linear(100, 2)).eval()
    with pytest.warns(UserWarning, match="restore_norms"):
        attr.GuidedBackprop(model).attribute(torch.randn(1, 3, 5, 5, requires_grad=True), target=0)


def test_input_by_its_name() -> None:
    """Bug: TypeError, as the argument was called x."""
    x = torch.randn(2, 4, 6, 6)
    for layer in all_layers().values():
        torch.testing.assert_close(layer.eval()(input=x), layer(x))


def test_root_mean_square_norm_takes_what_torch_calls_its_input() -> None:
    """Bug: a model that calls `norm(x=h)` failed once it was swapped."""
    x, layer = torch.randn(2, 4, 6), layers.RMSNorm(6)
    torch.testing.assert_close(layer(x=x), nn.RMSNorm(6)(x=x))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        layer()


def test_root_mean_square_norm_has_one_input() -> None:
    """Bug: of two, one was ignored."""
    x = torch.randn(2, 6)
    with pytest.raises(TypeError, match="got both x and input"):
        layers.RMSNorm(6)(x, input=x)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)])
def test_root_mean_square_norm_keeps_channels_last(shape: tuple[int, ...]) -> None:
    """Bug: the output was contiguous, where torch's has the strides of the input."""
    compare_strides(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), shape)


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_root_mean_square_norm_of_transposed_sequences(shape: tuple[int, ...]) -> None:
    """Bug: the output was channels-last, where torch's is contiguous: a `view` behind it failed."""
    compare_strides(torch.randn(2, 4, 3).transpose(1, 2), shape)


def compare_strides(x: Tensor, shape: tuple[int, ...]) -> None:
    x.requires_grad_()
    ours, stock = layers.RMSNorm(shape), nn.RMSNorm(shape)
    for layer in (ours, stock):
        nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(0))
    y, expected = ours(x), stock(x)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g))


@pytest.mark.parametrize("norm", ["bn", "gn", "in", "layernorm", "rmsnorm"])
def test_gradients_switched_on_in_inference_mode(norm: str) -> None:
    """Bug: "Inference tensors cannot be saved for backward", where torch's layers compute without gradients."""
    layer = {"layernorm": layers.LayerNorm, "rmsnorm": layers.RMSNorm}.get(norm, partial(normlab.make_norm, norm))(4)
    x = torch.randn(3, 4, 4)
    expected = copy.deepcopy(layer)(x).detach()
    with torch.inference_mode(), torch.enable_grad():
        y = layer(x)
    assert torch.equal(y, expected)
    assert not y.requires_grad


def test_root_mean_square_norm_takes_inputs_made_in_inference_mode() -> None:
    """Bug: "Inference tensors cannot be saved for backward", which torch's layer does not say."""
    with torch.inference_mode():
        x = torch.randn(2, 6)
    ours, stock = layers.RMSNorm(6), nn.RMSNorm(6)
    ours(x).square().sum().backward()
    stock(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, stock.weight.grad)


def test_errors_have_torchs_class() -> None:
    """Bug: a ValueError for a weight of two dimensions, an AttributeError for a list, struct.error for a momentum."""
    x = torch.randn(3, 4, 5, 6)
    for ours, stock in ((layers.BatchNorm2d(4), nn.BatchNorm2d(4)), (layers.InstanceNorm2d(4, affine=True), None)):
        for name in ("weight", "bias", *(["running_mean", "running_var"] if stock else [])):
            for layer in (copy.deepcopy(made) for made in (ours, stock) if made is not None):
                held = getattr(layer, name).detach().reshape(4, 1)
                setattr(layer, name, nn.Parameter(held) if name in ("weight", "bias") else held)
                with pytest.raises(RuntimeError):
                    layer.eval()(x).sum().backward()
    for layer in (layers.LayerNorm(6), layers.RMSNorm(6), layers.ChannelNorm(4)):
        with pytest.raises(TypeError, match="got list"):
            layer([1.0])
    norm: Any = layers.BatchNorm2d(4)
    norm.momentum = "a"
    with pytest.raises(TypeError, match="momentum must be float, not str"):
        norm(x)


class Wrapped(Tensor):
    """A tensor that has its numbers inside of another, as DTensor and quantized weights have: at no address."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Wrapped:
        made: Wrapped = Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)  # type: ignore[attr-defined]
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda v: v.inside if isinstance(v, cls) else v, (args, kwargs or {}))
        return tree_map(lambda v: cls(v) if isinstance(v, Tensor) else v, func(*args, **kwargs))


def unwrapped(v: Tensor) -> Tensor:
    return v.inside if isinstance(v, Wrapped) else v


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_of_a_subclass(name: str) -> None:
    """Bug: the kernels read a weight at address 0: outputs were zeros, the backward pass a segmentation fault."""
    for part in ("weight", "bias", "running_mean", "running_var", "gradient"):
        found = []
        for layer in (*pair(name, training=False)[:2],):
            if getattr(layer, part, None) is None and part != "gradient":
                continue
            if part in ("weight", "bias"):
                setattr(layer, part, nn.Parameter(Wrapped(torch.full_like(getattr(layer, part).detach(), 0.5))))
            elif part != "gradient":
                setattr(layer, part, Wrapped(torch.full_like(getattr(layer, part), 0.5)))
            x = pair(name)[2].requires_grad_()
            y = layer(x)
            dy = torch.arange(float(y.numel())).view(y.shape)
            gradients = torch.autograd.grad(y, [x, *layer.parameters()], Wrapped(dy) if part == "gradient" else dy)
            found.append([unwrapped(v) for v in (y, *gradients)])
        if found:
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "numba_cpu"])
@pytest.mark.parametrize("name", PAIRS)
def test_numbers_stored_with_the_other_sign(name: str, backend: str) -> None:
    """Bug: the imaginary part of a conjugate is a view that negates; the sign was lost, of inputs and parameters."""
    for part in ("input", "gradient", *STATE):
        found = []
        for layer in (*pair(name, training=False)[:2],):
            held = getattr(layer, part, None)
            if held is not None:
                negated = torch.complex(torch.zeros_like(held), -0.5 - held.detach()).conj().imag
                layer._parameters.pop(part, None)
                layer._buffers.pop(part, None)
                setattr(layer, part, negated)
            elif part in STATE:
                continue
            x = pair(name)[2]
            x = torch.complex(x, x).conj().imag if part == "input" else x
            with normlab.use_backend(backend):
                y = layer(x.requires_grad_())
                dy = torch.complex(y.detach(), y.detach() + 1).conj()
                dy = dy.imag if part == "gradient" else dy.real
                found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)])
        if found:
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_groups_are_any_whole_number() -> None:
    """Bug: groups of NumPy's were refused; and 2.0, which equals 2, broke every later layer of 2 groups."""
    x = torch.randn(3, 4, 5)
    for groups in (np.int64(2), torch.tensor(2)):
        torch.testing.assert_close(layers.GroupNorm(groups, 4)(x), nn.GroupNorm(2, 4)(x))  # type: ignore[arg-type]
        model = nn.Sequential(nn.GroupNorm(groups, 4, affine=False))  # type: ignore[arg-type]
        torch.testing.assert_close(normlab.swap_norms(model)(x), nn.GroupNorm(2, 4)(x))
    with pytest.raises(ValueError, match="whole number"):
        layers.Norm("gn", 4, groups=2.0)
    layer = layers.GroupNorm(2, 4, affine=False)
    layer.num_groups = 2.0  # type: ignore[assignment]
    with pytest.raises(TypeError):
        layer(x)
    layers.GroupNorm(2, 4, affine=False)(x)


@pytest.mark.parametrize("name", PAIRS)
def test_numbers_that_are_none(name: str) -> None:
    """Bug: an eps that was to be learned was taken for a number, and never learned; torch refuses it."""
    for value in (nn.Parameter(torch.tensor(0.1)), torch.tensor([0.1]), np.array(0.1)):
        for what in ("eps", "momentum"):
            ours, stock, x = pair(name)
            if hasattr(stock, what):
                for layer in (ours, stock):
                    vars(layer)[what] = value
                same(ours, stock, x)


@pytest.mark.parametrize("name", ["bn1", "bn2", "in2"])
def test_running_statistics_have_no_gradient(name: str) -> None:
    """Bug: those made a parameter were computed with, and never learned; torch refuses them."""
    for training, part in itertools.product((True, False), ("running_mean", "running_var")):
        ours, stock, x = pair(name, training)
        for layer in (ours, stock):
            setattr(layer, part, nn.Parameter(getattr(layer, part)))
        same(ours, stock, x)
        with pytest.raises(RuntimeError, match=f"not differentiable with respect to argument '{part}'"):
            ours(x)


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_that_are_no_tensors(name: str) -> None:
    """Bug: AttributeError, where torch raises TypeError."""
    for part in STATE:
        ours, stock, x = pair(name)
        for layer in (ours, stock):
            if getattr(layer, part, None) is not None:
                layer._parameters.pop(part, None)
                layer._buffers.pop(part, None)
                vars(layer)[part] = [1.0] * 4
        same(ours, stock, x)


@pytest.mark.parametrize("affine", [True, False])
def test_root_mean_square_norm_of_complex_numbers(affine: bool) -> None:
    """Bug: refused, where torch's computes."""
    x = torch.randn(3, 4, dtype=torch.complex64)
    ours, stock = (kind(4, elementwise_affine=affine) for kind in (layers.RMSNorm, nn.RMSNorm))
    torch.testing.assert_close(ours(x), stock(x))


@pytest.mark.parametrize("norm", ["ln", "rms", "frn", "grn"])
def test_running_statistics_that_nothing_would_read(norm: str) -> None:
    """Bug: the layer kept and moved them, and computed in evaluation as if it had none."""
    for make in (normlab.make_norm, layers.Norm):
        with pytest.raises(ValueError, match="leave out track_running_stats"):
            make(norm, 4, track_running_stats=True)  # type: ignore[operator]
        make(norm, 4, track_running_stats=False)  # type: ignore[operator]


def test_group_norm_of_any_rank() -> None:
    """Bug: refused beyond 5 dimensions."""
    x = torch.randn(2, 4, 2, 1, 3, 2, 2, requires_grad=True)
    ours, stock = layers.GroupNorm(2, 4), nn.GroupNorm(2, 4)
    torch.testing.assert_close(ours(x), stock(x))
    dy = torch.randn_like(x)
    torch.testing.assert_close(torch.autograd.grad(ours(x), x, dy), torch.autograd.grad(stock(x), x, dy))
    ours.num_groups = stock.num_groups = 4  # live, as every attribute
    torch.testing.assert_close(ours(x), stock(x))
    # Bug: both were flattened before their shapes were looked at.
    with pytest.raises(ValueError, match="residual: expected the input's shape"):
        ours(x, x.transpose(4, 5))
    with pytest.raises(ValueError, match="mask: expected shape"):
        ours(x, mask=torch.ones(2, 2, 1, 2, 3, 2))


@pytest.mark.parametrize("copied", [lambda v: v, copy.deepcopy], ids=["itself", "copy"])
def test_bounds_need_no_call(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Bug: without `constrain(model)` after each step the gate left [0, 1] in silence."""
    layer = copied(nn.Sequential(layers.BatchInstanceNorm(3)))
    other = layers.BatchInstanceNorm(3)
    with torch.no_grad():
        other.rho.fill_(2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
    layer(torch.randn(4, 3, 5, 5)).pow(3).sum().backward()
    optimizer.step()
    assert layer[0].rho.min() >= 0
    assert layer[0].rho.max() <= 1
    assert other.rho.tolist() == [2, 2, 2], "the optimizer of one model changed another"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_script_says_what_to_do() -> None:
    for layer in (layers.BatchNorm2d(4), layers.LayerNorm(4), layers.ChannelNorm(4)):
        with pytest.raises(RuntimeError, match="restore_norms"):
            torch.jit.script(nn.Sequential(layer))


def test_meta_device_is_silent() -> None:
    """Bug: BackendWarning about the device "meta"."""
    for name, layer in all_layers().items():
        assert layer.to("meta")(torch.empty(2, 4, 6, 6, device="meta")).shape == (2, 4, 6, 6), name


def test_a_saved_program_loads_in_a_fresh_process(tmp_path: Path) -> None:
    """Bug: cannot resolve normlab.normalize, until a layer had been imported."""

    class Masked(layers.GroupNorm):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(input, mask=input[:, 0] > 0)

    model = nn.Sequential(layers.BatchNorm2d(4, act="relu"), layers.LayerNorm(5), Masked(2, 4)).eval()
    x = torch.randn(2, 4, 5, 5)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "pair")
    code = (
        "x, y = torch.load('pair'); model = torch.export.load('model.pt2').module(); "
        "print(float((model(x) - y).abs().max()))"
    )
    for imports in ("import torch, normlab", "import normlab, torch"):
        command = [sys.executable, "-c", f"{imports}; {code}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout == "0.0\n", done.stderr


# --- a norm of one's own says what it asks for -----------------------------------------------------------------------


def own(monkeypatch: pytest.MonkeyPatch, grid: Any) -> nn.Module:
    from normlab.norms import family

    monkeypatch.setattr(family, "_REGISTRY", dict(family._REGISTRY))
    normlab.kernels.stages.recipe.cache_clear()
    family.register_norm("own-one")(grid)
    return normlab.make_norm("own-one", 4)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (lambda m, p: standardize(m.pool("n", 4), p), "only channels have groups"),
        (lambda m, p: Affine(p.weight, average(m.mean, "n", 2)), "only channels have groups"),
        (lambda m, p: Affine(p.weight, average(m.mean, "c", 3)), "do not divide"),
        (lambda m, p: Affine(p.weight, average(m.mean, "s")), "expected 'n' .samples. or 'c'"),
        (lambda m, p: standardize(m.pool("c", 0), p), "1 or more"),
        (lambda m, p: Affine(p.weight * np.arange(4.0), m.mean), "make it a parameter"),
        (lambda m, p: Affine(p.weight * torch.arange(4.0), m.mean), "make it a parameter"),
        (lambda m, p: Affine(p.weight * [1, 2, 3, 4], m.mean), "make it a parameter"),
    ],
)
def test_arguments_that_were_dropped(grid: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: `m.pool("n", 4)` was plain batch norm; a constant per channel, "only 0-dimensional arrays"."""
    with pytest.raises((ValueError, TypeError), match=said):
        own(monkeypatch, grid)(torch.randn(2, 4, 3))
