"""The layers where their program is looked at before it is run: operators, compile, export, checkpointing, autocast.

Every comparison is with the same layer called plainly, which the parity tests hold to oracles, and is exact.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.utils.checkpoint import checkpoint

import normlab
from normlab.errors import UsageError
from normlab.kernels import stages
from normlab.layers import operators
from normlab.norms import family as norms
from normlab.norms.grid import Affine, Moments, standardize
from tests.layers.parity import NORMS, randomize

FORMS = ((None, False), ("relu", False), ("leaky_relu:slope=0.2", True))
SHAPE = (3, 8, 5, 4)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer_of(norm: str, act: str | None = None, training: bool = True, **options: Any) -> nn.Module:
    layer = normlab.make_norm(norm, 8, act=act, **options).train(training)
    randomize(layer, torch.Generator().manual_seed(1))
    return layer


def inputs(residual: bool, layout: torch.memory_format = torch.contiguous_format, dtype: Any = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = 2 if residual else 1
    return [torch.randn(SHAPE, generator=generator).to(dtype).to(memory_format=layout) for _ in range(count)]


def results(layer: nn.Module, call: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """Output, gradients of all inputs and parameters, and buffers afterwards."""
    given = [v.clone().requires_grad_() for v in given]
    parameters = list(layer.parameters())
    y = call(*given)
    y.backward(torch.arange(y.numel()).reshape(y.shape).sin().to(y.dtype))
    grads = [v.grad for v in (*given, *parameters)]
    assert all(g is not None for g in grads)
    return [y.detach(), *grads, *(v.clone() for v in layer.buffers())]  # type: ignore[list-item]


def same(got: list[Tensor], want: list[Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.stride()) == (w.dtype, w.stride())
        assert torch.equal(g, w)


def equal_to_plain(layer: nn.Module, wrap: Callable[[nn.Module], Callable[..., Tensor]], given: list[Tensor]) -> None:
    """Wrapped and plain, forward and backward twice over, answer the same and leave the same behind."""
    other = copy.deepcopy(layer)
    wrapped = wrap(other)
    for _ in range(2):
        want = results(layer, layer, given)
        same(results(other, wrapped, given), want)


# --- the operators ---------------------------------------------------------------------------------------------------


def arguments(layer: Any, given: list[Tensor]) -> tuple[Any, ...]:
    running = [v.detach().clone() for k, v in layer.named_buffers() if k.startswith("running")]
    batch = layer.training or not running
    x, residual = (v.requires_grad_() for v in (given if len(given) > 1 else (*given, torch.empty(0))))
    params = dict(layer.named_parameters())
    return (
        x, residual if len(given) > 1 else None, list(params.values()), running, layer.num_batches_tracked, layer.norm,
        " ".join(params), repr(tuple(layer.options.items())), batch, layer.eps, str(layer.act or ""), 0.1,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm: str, form: tuple[str | None, bool]) -> None:
    """torch's own checks: schema, autograd registration, shapes without data, traced as called."""
    act, residual = form
    library.opcheck(operators.OPERATOR, arguments(layer_of(norm, act), inputs(residual)))


@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_opcheck_in_evaluation(norm: str) -> None:
    library.opcheck(operators.OPERATOR, arguments(layer_of(norm, "silu", training=False), inputs(True)))


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_opcheck_channels_last_on_the_reference(norm: str) -> None:
    with normlab.use_backend("reference"):
        given = inputs(True, torch.channels_last)
        library.opcheck(operators.OPERATOR, arguments(layer_of(norm, "relu"), given))


@pytest.mark.covering("norm", "layout", "backend")
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_operator_as_function(
    norm: str, training: bool, layout: torch.memory_format, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators and the autograd function give the same numbers."""
    for act, residual in FORMS:
        layer, given = layer_of(norm, act, training), inputs(residual, layout)
        other = copy.deepcopy(layer)
        with normlab.use_backend(backend):
            want = results(layer, layer, given)
            with monkeypatch.context() as patch:
                patch.setattr(operators, "watched", lambda x: True)
                same(results(other, other, given), want)


def test_backend_changed_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "watched", lambda x: True)
    y = layer_of("bn")(torch.randn(SHAPE, requires_grad=True))
    with normlab.use_backend("reference"), pytest.raises(RuntimeError, match=r"let normlab\.use_backend enclose both"):
        y.sum().backward()


# --- compiled and exported -------------------------------------------------------------------------------------------


def in_one_graph(layer: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


@pytest.mark.covering("norm", "training")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_compiled_in_one_graph(norm: str, form: tuple[str | None, bool], training: bool) -> None:
    act, residual = form
    equal_to_plain(layer_of(norm, act, training), in_one_graph, inputs(residual))


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("bn", {"momentum": None}),
        ("bn", {"affine": False}),
        ("bn", {"track_running_stats": False}),
        ("gn", {"groups": 4, "bias": False}),
        ("in", {"track_running_stats": True}),
    ],
    ids=str,
)
def test_compiled_with_options(norm: str, options: dict[str, Any]) -> None:
    equal_to_plain(layer_of(norm, **options), in_one_graph, inputs(False, torch.channels_last))


def test_compiled_for_changing_shapes() -> None:
    layer = layer_of("bn")
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((3, 8, 5, 4), (6, 8, 7, 7), (2, 8, 5, 9)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), layer(x))
    same(list(other.buffers()), list(layer.buffers()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_network_compiled_by_inductor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Convolutions around it may answer in another memory layout than they were given."""
    # what an earlier version had compiled knows its operators' shapes
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), layer_of("bn", "relu"), nn.Conv2d(8, 8, 3), layer_of("gn", "silu"), nn.Conv2d(8, 4, 1)
    )
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 12, 12).to(memory_format=layout)
        want, got = results(model, model, [x]), results(other, compiled, [x])
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("norm", "training"), [("bn", True), ("bn", False), ("in", True), ("gn", True)])
def test_exported(norm: str, training: bool, strict: bool) -> None:
    """The exported program has the layer's operator, and updates its own running statistics."""
    layer, given = layer_of(norm, "relu", training), inputs(True)
    program = torch.export.export(layer, tuple(given), strict=strict)
    assert sum("normlab.normalize" in str(node.target) for node in program.graph.nodes) == 1
    again = program.module()
    for _ in range(2):
        assert torch.equal(again(*given), layer(*given))
    state, expected = dict(again.named_buffers()), dict(layer.named_buffers())
    assert all(torch.equal(v, expected[name]) for name, v in state.items())
    assert not training or state.keys() == expected.keys()


def test_exported_and_loaded(tmp_path: Any) -> None:
    layer, (x,) = layer_of("gn:groups=4"), inputs(False)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: batch}})
    torch.export.save(program, tmp_path / "layer.pt2")
    again = torch.export.load(tmp_path / "layer.pt2").module()
    for count in (2, 5):
        wide = torch.randn(count, *SHAPE[1:])
        assert torch.equal(again(wide), layer(wide))


def test_registered_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_REGISTRY", dict(norms._REGISTRY))

    @normlab.register_norm("half", running=True)
    def half(m: Moments, p: Any, *, share: float = 0.5, where: str = "n") -> Affine:
        return share * standardize(m.pool(where), p) + (1 - share) * standardize(m, p)

    for training in (True, False):
        equal_to_plain(layer_of("half:share=0.25", "relu", training), in_one_graph, inputs(True))
    stages.recipe.cache_clear()


def test_options_that_are_no_literals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_REGISTRY", dict(norms._REGISTRY))
    monkeypatch.setattr(operators, "watched", lambda x: True)
    normlab.register_norm("own")(lambda m, p, *, f=None: f(m, p))
    with pytest.raises(UsageError, match=r"norm 'own': the options .* cannot be compiled or exported"):
        layer_of("own", f=lambda m, p: standardize(m, p))(torch.randn(SHAPE))


# --- checkpointing and autocast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("norm", "momentum"), [("bn", 0.1), ("bn", None), ("bin", 0.1), ("in", 0.1)])
def test_checkpointing_counts_a_batch_once(norm: str, momentum: float | None, use_reentrant: bool) -> None:
    layer = layer_of(norm, "relu", momentum=momentum, track_running_stats=True)
    equal_to_plain(layer, lambda m: lambda *v: checkpoint(m, *v, use_reentrant=use_reentrant), inputs(True))


def test_checkpointing_in_a_compiled_graph() -> None:
    def wrap(layer: nn.Module) -> Callable[..., Tensor]:
        def call(x: Tensor) -> Tensor:
            y: Tensor = checkpoint(layer, x, use_reentrant=False)
            return y

        return torch.compile(call, fullgraph=True, backend="aot_eager")

    equal_to_plain(layer_of("bn", "relu"), wrap, inputs(False))


def test_a_layer_first_used_in_a_backward_pass_of_another_graph() -> None:
    """The rule that tells a second pass: it is run by a backward pass. After it, layers count again."""
    layer = layer_of("bn")
    x = torch.randn(SHAPE, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    layer(x)
    assert layer.num_batches_tracked == 3 + 2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_autocast(norm: str, compiled: bool) -> None:
    """Inputs keep their dtype; parameters and statistics stay float32; what follows a convolution is bfloat16."""
    model = nn.Sequential(nn.Conv2d(8, 8, 1), layer_of(norm, "relu"))
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    (x,) = inputs(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(x)
        z = model[1](x)
    assert y.dtype == torch.bfloat16
    assert z.dtype == torch.float32
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(v.dtype in (torch.float32, torch.int64) for v in model.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_compiled(dtype: torch.dtype) -> None:
    for norm, act in (("bn", "relu"), ("gn", None)):
        equal_to_plain(layer_of(norm, act), in_one_graph, inputs(True, dtype=dtype))


# --- other ways to look at a program ---------------------------------------------------------------------------------


def test_fake_tensors_have_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = layer_of("gn")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.randn(SHAPE).to(memory_format=torch.channels_last))
        y = layer(x)
    assert y.shape == SHAPE
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_traced_by_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    layer, (x,) = layer_of("ln", "relu"), inputs(False)
    traced = make_fx(layer)(x)
    assert any("normlab.normalize" in str(node.target) for node in traced.graph.nodes)
    other = torch.randn(SHAPE)
    assert torch.equal(traced(other), layer(other))


# Bug: compiled autograd traced the call of the kernels, addresses and all: wrong memory was read and written.
@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd_does_not_trace_kernels() -> None:
    from torch._dynamo import compiled_autograd

    x, dy = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    layers = [normlab.layers.BatchNorm2d(4, act="silu"), normlab.layers.GroupNorm(2, 4), normlab.layers.LayerNorm(6)]
    found = []
    for compiled in (False, True):
        with normlab.use_backend("numba_cpu"):
            v = x.clone().requires_grad_()
            y = nn.Sequential(*layers)(v)
            given = [v, *(p for layer in layers for p in layer.parameters())]
            with compiled_autograd._enable(lambda g: torch.compile(g, backend="eager")) if compiled else nullcontext():
                y.backward(dy)
        found.append([p.grad.clone() for p in given])  # type: ignore[union-attr]
        for p in given:
            p.grad = None
    torch.testing.assert_close(*found)
