"""What people do to a model, done to our layers and to torch's: what works with torch's works with ours, alike.

`python -m tests.layers.test_ecosystem` prints the table; `--write docs/layers.md` puts it there.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import normlab
from normlab import layers

Make = Callable[[], nn.Module]
SHAPE = (3, 4, 6, 6)


# --- who it is done to -----------------------------------------------------------------------------------------------


class StockActing(nn.BatchNorm2d):
    """torch's batch norm and activation in one class, so that the state has the same keys."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(super().forward(input))


class Added(nn.Module):
    """A layer with a residual: its own input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class StockAdded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + x)


class Masked(nn.Module):
    """A layer with a mask: some of the positions, by its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, mask=x[:, 0] > -1)


class StockMaskedNorm(nn.BatchNorm2d):
    """The composition that torch has for it."""

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        kept = mask[:, None]
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = mask.sum()
            mean = torch.where(kept, input, 0.0).sum((0, 2, 3)) / count
            var = torch.where(kept, input - mean[:, None, None], 0.0).square().sum((0, 2, 3)) / count
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1), momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        z = (input - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return torch.where(kept, z, 0.0)


class StockChannel(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(4, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8), nn.GELU(),
        nn.LayerNorm(6), nn.Conv2d(8, 4, 1),
    )  # fmt: skip


SUBJECTS: dict[str, tuple[Make, Make]] = {
    "BatchNorm2d": (lambda: layers.BatchNorm2d(4), lambda: nn.BatchNorm2d(4)),
    "InstanceNorm2d": (lambda: layers.InstanceNorm2d(4, affine=True), lambda: nn.InstanceNorm2d(4, affine=True)),
    "GroupNorm": (lambda: layers.GroupNorm(2, 4), lambda: nn.GroupNorm(2, 4)),
    "LayerNorm": (lambda: layers.LayerNorm(6), lambda: nn.LayerNorm(6)),
    "RMSNorm": (lambda: layers.RMSNorm(6), lambda: nn.RMSNorm(6)),
    "ChannelNorm": (lambda: layers.ChannelNorm(4), StockChannel),
    "with act": (lambda: layers.BatchNorm2d(4, act="silu"), lambda: StockActing(4)),
    "with residual": (lambda: Added(layers.BatchNorm2d(4, act="relu")), StockAdded),
    "with mask": (lambda: Masked(layers.BatchNorm2d(4)), lambda: Masked(StockMaskedNorm(4))),
    "swapped model": (lambda: normlab.swap_norms(network()), network),
    "fused model": (lambda: normlab.fuse_norms(network(), given()), network),
}

# --- what is done ----------------------------------------------------------------------------------------------------


def made(make: Make) -> nn.Module:
    """A module whose parameters no mistake can hide behind."""
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for v in module.parameters():
            v.add_(0.1 * torch.randn_like(v))
    return module


def given() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def used(module: Any, x: Tensor | None = None) -> list[Tensor]:
    """Output and gradient of the input."""
    x = (given() if x is None else x).requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad((y.float() * torch.linspace(-1, 1, 6)).sum(), x)]


def norm_of(module: nn.Module) -> nn.Module:
    """The first normalization inside."""
    return next(m for m in module.modules() if (getattr(m, "weight", None) is not None and "Norm" in type(m).__name__)
                or isinstance(m, StockActing | StockChannel))  # fmt: skip


def copied(make: Make) -> Any:
    return used(copy.deepcopy(made(make)))


def pickled(make: Make) -> Any:
    return used(pickle.loads(pickle.dumps(made(make))))


def saved(make: Make) -> Any:
    file = io.BytesIO()
    torch.save(made(make), file)
    file.seek(0)
    return used(torch.load(file, weights_only=False))


def state_from_stock(make: Make) -> Any:
    """The state of torch's module of the same subject goes in, and ours comes out with the same keys."""
    stock = next(stock for ours, stock in SUBJECTS.values() if make in (ours, stock))
    module, source = made(make), made(stock)
    module.load_state_dict(source.state_dict())
    source.load_state_dict(module.state_dict())
    return [*used(module), *module.state_dict().values()]


def pruned(make: Make) -> Any:
    module = made(make)
    prune.random_unstructured(norm_of(module), "weight", 2)
    first = used(module)
    prune.remove(norm_of(module), "weight")
    return [*first, *used(module)]


class Doubled(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return 2 * v


def parametrized(make: Make) -> Any:
    module = made(make)
    parametrize.register_parametrization(norm_of(module), "weight", Doubled())
    return used(module)


def weight_normed(make: Make) -> Any:
    module = made(make)
    nn.utils.parametrizations.weight_norm(norm_of(module), "weight", dim=None)
    return used(module)


def data_parallel(make: Make) -> Any:
    return used(nn.DataParallel(made(make)))


@contextmanager
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ddp(make: Make) -> Any:
    """Two forward passes before one backward pass."""
    with group():
        module = nn.parallel.DistributedDataParallel(made(make), broadcast_buffers=False)
        x = given().requires_grad_()
        y = module(x) + module(x + 1)
        y.square().mean().backward()
        return [y, x.grad, *[p.grad for p in module.parameters()]]


def fsdp(make: Make, **options: Any) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with group():
        return used(FullyShardedDataParallel(made(make), device_id=torch.device("cpu"), **options))


def fsdp_original(make: Make) -> Any:
    return fsdp(make, use_orig_params=True)


def fsdp2(make: Make) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with group():
        return used(fully_shard(made(make), mesh=init_device_mesh("cpu", (1,))))


def symbolic_traced(make: Make) -> Any:
    return used(torch.fx.symbolic_trace(nn.Sequential(made(make))))


def traced_by_itself(make: Make) -> Any:
    return used(torch.fx.symbolic_trace(made(make)))


class Features(torch.fx.Interpreter):
    """Every intermediate result by its node, as extractors of features take them."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[Tensor] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        y = super().run_node(n)
        if n.op == "call_module":
            self.found.append(y)
        return y


def features(make: Make) -> Any:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), made(make))
    extractor = Features(torch.fx.symbolic_trace(model))
    y = extractor.run(given())
    return [y, extractor.found[0]]


def jit_traced(make: Make) -> Any:
    module = made(make).eval()
    return [torch.jit.trace(module, given())(given() + 1)]


def jit_scripted(make: Make) -> Any:
    return used(torch.jit.script(made(make)))


def compiled(make: Make) -> Any:
    torch._dynamo.reset()
    return used(torch.compile(made(make), backend="aot_eager", fullgraph=True))


def exported(make: Make) -> Any:
    file = io.BytesIO()
    torch.export.save(torch.export.export(made(make).eval(), (given(),)), file)
    file.seek(0)
    return [torch.export.load(file).module()(given() + 1)]


def onnx(make: Make, dynamo: bool = True) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(made(make).eval(), (given(),), path, dynamo=dynamo, verbose=False)
        session = runtime.InferenceSession(path)
        return [torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given().numpy()})[0])]


def onnx_traced(make: Make) -> Any:
    return onnx(make, dynamo=False)


def folded(make: Make) -> Any:
    """Into the convolution before it; what torch refuses for other norms, or drops of an activation, is refused."""
    module = made(make).eval()
    if not isinstance(module, nn.BatchNorm2d) or isinstance(module, StockActing):
        raise NotImplementedError("folding takes a batch norm")
    torch.manual_seed(2)
    return [fuse_conv_bn_eval(nn.Conv2d(4, 4, 1).eval(), module)(given())]


def quantized_dynamically(make: Make) -> Any:
    model = nn.Sequential(made(make), nn.Flatten(1), nn.Linear(144, 3)).eval()
    return [torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(given())]


def quantization_prepared(make: Make) -> Any:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), made(make), torch.ao.quantization.DeQuantStub()).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = torch.ao.quantization.prepare(model)
    return [prepared(given())]


def quantized(make: Make) -> Any:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), made(make), torch.ao.quantization.DeQuantStub()).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = torch.ao.quantization.prepare(model)
    prepared(given())
    return [torch.ao.quantization.convert(prepared)(given())]


def modules_fused(make: Make) -> Any:
    """A convolution and what comes behind it, for quantization."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), made(make)).eval()
    return [torch.ao.quantization.fuse_modules(model, ["0", "1"])(given())]


def sequence_parallel(make: Make) -> Any:
    """Parameters and inputs are DTensors, the inputs split along their second dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

    with group():
        mesh = init_device_mesh("cpu", (1,))
        module = parallelize_module(nn.Sequential(made(make)), mesh, {"0": SequenceParallel(use_local_output=True)})
        y = module(given())
        return [y.full_tensor() if hasattr(y, "full_tensor") else y]


def jagged(make: Make) -> Any:
    rows = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 3)]
    module = made(make)
    x = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
    y = module(x)
    return [y.values(), torch.autograd.grad(y.values().square().sum(), x)[0].values()]


def hooked(make: Make) -> Any:
    """As accelerate does it: `forward` is another function, and weights come from elsewhere for each call."""
    module = made(make)
    for part in list(module.modules()):
        kept = {k: p.detach().clone() for k, p in part._parameters.items() if p is not None}
        forward = part.forward
        for k, p in kept.items():
            part._parameters[k] = nn.Parameter(torch.empty_like(p, device="meta"))

        def called(*args: Any, part: Any = part, kept: Any = kept, forward: Any = forward, **kwargs: Any) -> Any:
            for k, p in kept.items():
                part._parameters[k] = nn.Parameter(p)
            return forward(*args, **kwargs)

        part.forward = called
    return used(module)


def forked(make: Make) -> Any:
    """In a child process that began as a copy of this one."""
    module, path = made(make).eval(), Path(tempfile.mkdtemp()) / "y.pt"
    module(given())

    def work() -> None:
        torch.save(module(given()).detach(), path)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    return [torch.load(path)]


def autocast(make: Make) -> Any:
    module, scaler = made(make), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(given()).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return [loss]


def checkpointed(make: Make) -> Any:
    """With frozen statistics: torch's own count a batch twice, ours once."""
    module = made(make)
    for m in module.modules():
        m.momentum = 0.0
    return used(lambda x: checkpoint(module, x, use_reentrant=False))


def averaged(make: Make) -> Any:
    module = made(make)
    mean = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    used(module)
    mean.update_parameters(module)
    torch.optim.swa_utils.update_bn([given(), given() + 1], mean)
    return [*used(mean.eval()), *mean.buffers()]


def functional(make: Make) -> Any:
    module = made(make).eval()
    params = dict(module.named_parameters())

    def loss(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(module, params, (x,)).square().mean()

    grads = torch.func.grad(loss)(params, given())
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, given().unsqueeze(1))
    return [*grads.values(), *each.values()]


def lazy(make: Make) -> Any:
    torch.manual_seed(3)
    return used(nn.Sequential(nn.LazyConv2d(4, 1), made(make)))


def from_meta(make: Make) -> Any:
    source = made(make)
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device="cpu")
    module.load_state_dict(source.state_dict())
    return used(module)


def inference(make: Make) -> Any:
    module = made(make).eval()
    with torch.inference_mode():
        y = module(given())
    return [y.clone(), *used(module)]


def threads(make: Make) -> Any:
    module, found = made(make).eval(), [None] * 4

    def work(i: int) -> None:
        found[i] = module(given() + i)  # type: ignore[call-overload]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


OPERATIONS: dict[str, Callable[[Make], Any]] = {
    "`copy.deepcopy`": copied,
    "`pickle`": pickled,
    "`torch.save`, `torch.load`": saved,
    "`state_dict` both ways": state_from_stock,
    "`utils.prune`": pruned,
    "`parametrize`": parametrized,
    "`weight_norm`": weight_normed,
    "`DataParallel`": data_parallel,
    "`DistributedDataParallel`, two forwards": ddp,
    "FSDP, its default": fsdp,
    "FSDP, `use_orig_params`": fsdp_original,
    "`fully_shard`": fsdp2,
    "`SequenceParallel` (DTensor)": sequence_parallel,
    "jagged nested tensors": jagged,
    "hooks as accelerate's": hooked,
    "`fx.symbolic_trace`": symbolic_traced,
    "`fx.symbolic_trace` of itself": traced_by_itself,
    "feature extraction": features,
    "`jit.trace`": jit_traced,
    "`jit.script`": jit_scripted,
    "`torch.compile`": compiled,
    "`torch.export`, save and load": exported,
    "ONNX": onnx,
    "ONNX, traced": onnx_traced,
    "`fuse_conv_bn_eval`": folded,
    "`quantize_dynamic`": quantized_dynamically,
    "static quantization, `prepare`": quantization_prepared,
    "static quantization, `convert`": quantized,
    "`quantization.fuse_modules`": modules_fused,
    "autocast, `GradScaler`": autocast,
    "`utils.checkpoint`": checkpointed,
    "`AveragedModel`, `update_bn`": averaged,
    "`torch.func`": functional,
    "lazy modules": lazy,
    "meta device, `to_empty`": from_meta,
    "inference mode": inference,
    "threads": threads,
    "fork": forked,
}
SLOW = {
    "`torch.compile`",
    "`torch.export`, save and load",
    "ONNX",
    "ONNX, traced",
    "`DistributedDataParallel`, two forwards",
    "fork",  # where this process has used several threads, torch's own layer waits for them in the child
}
# what ours refuses, with an error that matches this; docs/layers.md says why
_RESTORE = "restore_norms"
REFUSED: dict[tuple[str, str], str] = {
    **{("`jit.script`", name): _RESTORE for name in SUBJECTS},
    ("`fuse_conv_bn_eval`", "with act"): _RESTORE,
    **{("static quantization, `convert`", name): _RESTORE for name in SUBJECTS},
    **{("`quantization.fuse_modules`", name): "fuse" for name in SUBJECTS},
}


def compared(operation: str, subject: str) -> str:
    """ "yes" if ours gives what torch's gives, or what happened; raises AssertionError where the two differ."""
    (ours, stock), act = SUBJECTS[subject], OPERATIONS[operation]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            want = act(stock)
        except Exception:
            return "torch: no"
        if (operation, subject) in REFUSED:
            with pytest.raises(Exception, match=REFUSED[operation, subject]):
                act(ours)
            return "no: `restore_norms`"
        got = act(ours)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    return "yes"


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("operation", [pytest.param(o, marks=pytest.mark.slow) if o in SLOW else o for o in OPERATIONS])
def test_as_with_torch(operation: str, subject: str) -> None:
    if compared(operation, subject) == "torch: no":
        pytest.skip("torch does not either")


def table() -> str:
    rows = []
    for operation in OPERATIONS:
        cells = []
        for subject in SUBJECTS:
            try:
                cells.append(compared(operation, subject))
            except BaseException as error:
                cells.append(f"NO: {type(error).__name__}")
        rows.append(f"| {operation} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return "\n".join([f"| | {' | '.join(SUBJECTS)} |", "|---" * (len(SUBJECTS) + 1) + "|", *rows])


PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
START, END = "<!-- ecosystem -->\n", "<!-- end of ecosystem -->"


def test_the_page_has_every_row() -> None:
    text = PAGE.read_text()
    rows = text[text.index(START) : text.index(END)].splitlines()[1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == list(OPERATIONS)
    assert rows[0] == f"| | {' | '.join(SUBJECTS)} |"
    assert "NO:" not in text


def write(page: Path) -> None:
    """Put the table into a page."""
    text, found = page.read_text(), table()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    page.write_text(f"{before}{found}\n{after}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        table()
