"""The kernels called from C++: the same numbers as from Python, and all that autograd does to a layer.

The tests that need it built are slow: it takes a compiler most of a minute.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import threading
from ctypes import CFUNCTYPE, c_int64
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normlab
from normlab import cli
from normlab.errors import UsageError
from normlab.kernels.native import building
from tests.layers.parity import NORMS, Case, check

ROOT = Path(__file__).parents[2]
slow = pytest.mark.slow


@pytest.mark.usefixtures("unbuilt")
def test_before_it_is_built() -> None:
    assert normlab.backend_for(torch.zeros(1)) == "numba_cpu"
    with (
        normlab.use_backend("native_cpu"),
        pytest.raises(UsageError, match=r"'native_cpu' cannot serve anything before its C\+\+ part is built; run"),
    ):
        normlab.make_norm("bn", 3)(torch.ones(2, 3, 4))


@pytest.mark.usefixtures("unbuilt")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    def load(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr(cpp_extension, "load", load)
    with pytest.raises(UsageError, match=r"Ninja is required.*\n.*everything works as before"):
        building.build()
    assert building.built() is None


@pytest.mark.usefixtures("unbuilt")
def test_what_does_not_load_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    place = building._place()
    assert place is not None
    place.parent.mkdir()
    place.write_text("no library")
    assert normlab.backend_for(torch.zeros(1)) == "numba_cpu"


# a container's user whose home belongs to root: every layer on the CPU raised PermissionError
@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize("method", ["is_file", "read_bytes"])
def test_where_nothing_can_be_read(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    assert building.built() is None
    assert normlab.backend_for(torch.zeros(1)) == "numba_cpu"
    with pytest.raises(UsageError, match=r"normlab build: .*Permission denied.*\n.*TORCH_EXTENSIONS_DIR"):
        building.build()


# it claimed that layers were called through what did not load
@pytest.mark.usefixtures("unbuilt")
def test_what_does_not_load_is_not_reported_as_built(capsys: pytest.CaptureFixture[str]) -> None:
    place = building._place()
    assert place is not None
    place.parent.mkdir()
    place.write_text("no library")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["build"])
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{place} does not load" in err


# torch calls the second extension of a process normlab_native_v1
@pytest.mark.usefixtures("unbuilt")
def test_the_library_is_found_by_whatever_number_torch_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    def load(name: str, sources: list[str], *, build_directory: str, **kwargs: object) -> None:
        Path(build_directory, f"{name}_v1.so").write_text("no library")

    monkeypatch.setattr(cpp_extension, "load", load)
    with pytest.raises(UsageError, match="does not load"):
        building.build()
    assert building.built() == building._place()


@pytest.mark.usefixtures("unbuilt")
def test_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(UsageError, match="for Linux and macOS; without it everything works as before"):
        building.build()


def _outcome(layer: nn.Module, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = layer(*inputs)
    grads = torch.autograd.grad(y, [*inputs, *layer.parameters()], dy)
    return [y.detach(), *grads, *(v.clone() for v in layer.buffers())]


@slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(4, 8, 5), (3, 8, 5, 4), (9, 8, 6, 6), (2, 8, 2, 3, 4)])
def test_same_numbers_as_from_python(norm: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for act, adds, training, last in itertools.product((None, "relu"), (False, True), (True, False), (False, True)):
        x, residual, dy = torch.randn(3, *shape, generator=generator)
        if last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        inputs = [v.requires_grad_() for v in ((x, residual) if adds else (x,))]
        layer = normlab.make_norm(norm, 8, act=act).train(training)
        outcomes = []
        for backend in ("native_cpu", "numba_cpu"):
            with normlab.use_backend(backend):
                outcomes.append(_outcome(copy.deepcopy(layer), inputs, dy))
        for native, python in zip(*outcomes, strict=True):
            assert torch.equal(native, python)
            assert native.stride() == python.stride()


@slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["first", "last", "sliced"])
@pytest.mark.parametrize("residual", [False, True])
def test_parity_with_torch(norm: str, layout: str, residual: bool) -> None:
    for training in (True, False):
        check(Case(norm, layout=layout, residual=residual, training=training, backend="native_cpu", act="relu"))


@slow
@pytest.mark.usefixtures("native")
def test_autograd_sees_an_ordinary_node() -> None:
    layer, x = normlab.make_norm("bn", 4), torch.randn(3, 4, 5, requires_grad=True)
    seen: list[Tensor] = []
    before = layer.running_mean._version
    y = layer(x)
    assert layer.running_mean._version == before + 1  # a change by a kernel counts
    y.register_hook(seen.append)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = layer(x)
    y += 1  # no view
    y.relu_().sum().backward()
    changed = x.detach().clone().requires_grad_() * 1.0
    y = layer(changed)
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.no_grad():
        assert layer(x).grad_fn is None


@slow
@pytest.mark.usefixtures("native")
def test_all_that_is_kept_goes_through_hooks() -> None:
    layer = normlab.make_norm("bn", 4, act="relu")
    x, residual, dy = torch.randn(3, 3, 4, 5, 2)
    inputs = [x.requires_grad_(), residual.requires_grad_()]
    want = torch.autograd.grad(layer(*inputs), [*inputs, *layer.parameters()], dy)
    packed: list[Tensor] = []

    def pack(v: Tensor) -> Tensor:
        packed.append(v)
        return v.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        y = layer(*inputs)
    assert len(packed) == 5
    packed[-1].fill_(float("nan"))  # the numbers that the kernels keep: the gradient comes from the copy
    for found, expected in zip(torch.autograd.grad(y, [*inputs, *layer.parameters()], dy), want, strict=True):
        assert torch.equal(found, expected)


# what had been stored as float32 was read as float64, and what lies behind it
@slow
@pytest.mark.usefixtures("built")
def test_what_hooks_store_in_another_dtype_or_shape() -> None:
    found = []
    x, dy = torch.randn(2, 3, 4, 5)
    for name in ("native_cpu", "numba_cpu"):
        layer = normlab.make_norm("bn", 4)
        numbers = torch.autograd.graph.saved_tensors_hooks(
            lambda v: v.float(), lambda v: v.float() if v.dtype is torch.float64 else v
        )
        with normlab.use_backend(name), numbers:
            y = layer(x.requires_grad_())
        found.append(torch.autograd.grad(y, [x, *layer.parameters()], dy))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    with (
        normlab.use_backend("native_cpu"),
        torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v[:3] if v.dtype is torch.float64 else v),
    ):
        y = layer(x)
    with pytest.raises(RuntimeError, match="was unpacked with shape"):
        y.backward(dy)


@slow
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("training", [True, False])
def test_further_derivatives(norm: str, training: bool) -> None:
    layer = normlab.make_norm(norm, 4).double().train(training)
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    if norm == "bn" and not training:
        y = layer(x)
        layer.running_mean.add_(1)
        with pytest.raises(RuntimeError, match="running statistics that a second derivative needs were changed"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@slow
@pytest.mark.usefixtures("native")
def test_transforms_and_batches_of_gradients() -> None:
    layer = normlab.make_norm("gn:groups=2", 4)
    x = torch.randn(3, 4, 2, requires_grad=True)
    y = layer(x)
    each = torch.stack([torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in torch.eye(24).view(24, 3, 4, 2)])
    (together,) = torch.autograd.grad(y, x, torch.eye(24).view(24, 3, 4, 2), is_grads_batched=True)
    torch.testing.assert_close(together, each)
    jacobian = torch.func.jacrev(layer)(x.detach())
    torch.testing.assert_close(jacobian.reshape(each.shape), each)


@slow
@pytest.mark.usefixtures("native")
def test_checkpointing_and_recomputed_outputs() -> None:
    layer = normlab.make_norm("bn", 4, act="relu")
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    weight = torch.randn(4, 4, 1, 1, requires_grad=True)
    second = copy.deepcopy(layer)
    third = copy.deepcopy(layer)
    want = torch.autograd.grad(nn.functional.conv2d(layer(x), weight).square().sum(), [x, weight])
    y = checkpoint(second, x, use_reentrant=False)
    found = torch.autograd.grad(nn.functional.conv2d(y, weight).square().sum(), [x, weight])
    with normlab.recomputed_outputs():
        y = third(x)
        loss = nn.functional.conv2d(y, weight).square().sum()
    recomputed = torch.autograd.grad(loss, [x, weight])
    for a, b, c in zip(want, found, recomputed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert torch.equal(layer.running_mean, second.running_mean)


# The two nodes saved their tensors in different orders: the first pass of instance norm moves its running statistics,
# which Python does, and the second, through C++, did not fit.
@slow
@pytest.mark.usefixtures("native")
def test_checkpointing_where_one_pass_is_called_from_python() -> None:
    layer = normlab.make_norm("in", 4, act="relu", track_running_stats=True)
    second = copy.deepcopy(layer)
    x, residual = (torch.randn(3, 4, 5, 5, requires_grad=True) for _ in range(2))
    want = torch.autograd.grad(layer(x, residual).square().sum(), [x, residual, *layer.parameters()])
    y = checkpoint(second, x, residual, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), [x, residual, *second.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    assert torch.equal(layer.running_mean, second.running_mean)


@slow
@pytest.mark.usefixtures("built")
def test_threads_and_hooks_of_modules() -> None:
    layer = normlab.make_norm("ln", 4)
    x, dy = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    seen: list[int] = []
    layer.register_full_backward_hook(lambda *_: seen.append(1))
    outcomes: list[Tensor] = []

    def work() -> None:
        with normlab.use_backend("native_cpu"):
            for _ in range(20):
                given = x.clone().requires_grad_()
                layer(given).backward(dy)
                assert given.grad is not None
                outcomes.append(given.grad)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(seen) == 60
    assert all(torch.equal(outcomes[0], v) for v in outcomes)


# the second of two threads replaced what the first one was reading
@slow
@pytest.mark.usefixtures("native")
def test_the_first_backward_pass_in_two_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from normlab.kernels.native import planes

    prepare = planes.prepare_call
    both, over = threading.Barrier(2), threading.Event()
    late: list[int] = []
    late_one = CFUNCTYPE(None, c_int64)(late.append)

    def prepare_together(plan: Any, backward: bool, adds: bool) -> Any:
        function, numbers = prepare(plan, backward, adds)
        if backward and both.wait(60) == 0:
            assert over.wait(60)
            return late_one, numbers
        return function, numbers

    monkeypatch.setattr(planes, "prepare_call", prepare_together)
    layer = normlab.make_norm("gn:groups=2", 4)
    x, dy = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    found: list[Tensor] = []

    def work() -> None:
        given = x.clone().requires_grad_()
        with normlab.use_backend("native_cpu"):
            y = layer(given)
        found.extend(torch.autograd.grad(y, given, dy))
        over.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = x.clone().requires_grad_()
    found.extend(torch.autograd.grad(layer(given), given, dy))
    with normlab.use_backend("numba_cpu"):
        (want,) = torch.autograd.grad(layer(given), given, dy)
    assert late == []
    assert len(found) == 3
    assert all(torch.equal(v, want) for v in found)


# running statistics were written into the memory that a clone shared with them
@slow
@pytest.mark.usefixtures("native")
def test_memory_that_is_shared_until_it_is_written() -> None:
    layer = normlab.make_norm("bn", 4, act="relu")
    x, dy = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    before = {name: v.clone() for name, v in layer.named_buffers()}
    shared = {name: torch._lazy_clone(v) for name, v in layer.named_buffers()}
    lazy = torch._lazy_clone(x).requires_grad_()
    layer(lazy).backward(dy)
    for name, v in shared.items():
        assert torch.equal(v, before[name])
    assert not torch.equal(layer.running_mean, before["running_mean"])
    assert torch._C._is_cow_tensor(lazy.detach())  # what is read stays shared


@slow
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("training", [True, False])
def test_inference_mode(training: bool) -> None:
    x, residual = torch.randn(2, 3, 4, 5)
    layer = normlab.make_norm("bn", 4, act="relu").train(training)
    with torch.no_grad():
        want = copy.deepcopy(layer)(x, residual=residual)
    with torch.inference_mode():
        made_inside = copy.deepcopy(layer)
        found = made_inside(x.clone(), residual=residual)
    assert torch.equal(layer(x, residual=residual), want)
    assert found.is_inference()
    assert torch.equal(found, want)
    assert torch.equal(made_inside.running_mean, layer.running_mean)


_FORK = """
import os
import torch
import normlab

torch.set_num_threads(2)
layer = normlab.make_norm("gn:groups=2", 16)
x = torch.randn(16, 16, 64, 64, requires_grad=True)

def work():
    with normlab.use_backend("native_cpu"):
        y = layer(x)
        return y, *torch.autograd.grad(y, x, x.detach())

want = work()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own pool does not survive a fork
    os._exit(0 if all(map(torch.equal, work(), want)) else 9)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("child", code, "parent", all(map(torch.equal, work(), want)))
"""


@slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system has no fork")
@pytest.mark.usefixtures("built")
def test_after_a_fork() -> None:
    """A child whose parent has used OpenMP's threads has none of them."""
    command = [sys.executable, "-c", _FORK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "child 0 parent True", done.stdout + done.stderr


@slow
@pytest.mark.usefixtures("native")
def test_distributed_data_parallel() -> None:
    layer = normlab.make_norm("bn", 4, act="relu")
    x, dy = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    alone = copy.deepcopy(layer)
    alone(x).backward(dy)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(layer)(x).backward(dy)
    finally:
        dist.destroy_process_group()
    for found, want in zip(layer.parameters(), alone.parameters(), strict=True):
        assert found.grad is not None
        assert want.grad is not None
        assert torch.equal(found.grad, want.grad)
    assert torch.equal(layer.running_mean, alone.running_mean)


@slow
@pytest.mark.usefixtures("native")
def test_compiled_autograd_is_refused_in_a_sentence() -> None:
    from torch._dynamo import compiled_autograd

    y = normlab.make_norm("bn", 4)(torch.randn(3, 4, 5, requires_grad=True))
    with (
        compiled_autograd._enable(lambda graph: graph),
        pytest.raises(RuntimeError, match=r"called through C\+\+; call them within .*use_backend\(\"numba_cpu\"\)"),
    ):
        y.sum().backward()
