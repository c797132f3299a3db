"""One comparison for every test of a layer: with a float64 oracle, and with torch's own layer.

`check(Case(...))` compares shape, dtype, memory format, values, gradients of input and parameters, running
statistics and `state_dict` keys; it raises AssertionError saying what differs, and by how much. The oracle is plain
float64 torch under autograd and shares no code with normlab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normlab

NORMS = ("bn", "in", "bin", "ln", "gn")
ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu:slope=0.2": lambda z: F.leaky_relu(z, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
}

# those that are compiled when a layer first asks for them
MORE_ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "hardsigmoid": lambda z: F.relu6(z + 3) / 6,  # torch's own has a slope of float32
    "hardswish": F.hardswish,
    "elu": F.elu,
    "elu:alpha=0.3": lambda z: F.elu(z, 0.3),
    "tlu": lambda z: F.threshold(z, 0.0, 0.0),
    "tlu:threshold=-0.3": lambda z: F.threshold(z, -0.3, -0.3),
    "mish": F.mish,
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
}


def acted(act: str | None, z: Tensor) -> Tensor:
    """act(z)."""
    return (ACTS | MORE_ACTS)[act](z)


BACKENDS = ("numba_cpu", "reference")
LAYOUTS = ("first", "last", "sliced", "transposed", "expanded")
SHAPES = {2: (6, 8), 3: (4, 8, 7), 4: (3, 8, 5, 4), 5: (2, 8, 3, 4, 2)}
# largest error allowed, in units of the dtype's rounding error and of the largest expected magnitude
ULPS = 32
# torch's own layers sum in float32 and less carefully
STOCK_ULPS = 256


def rank_of(norm: str) -> range:
    """The ranks of input that a norm is defined on: an instance of one position has no variance."""
    return range(3, 6) if norm in ("in", "bin") else range(2, 6)


@dataclass(frozen=True)
class Case:
    """What to compare; the test's name shows whatever differs from these defaults."""

    norm: str = "bn"
    shape: tuple[int, ...] = SHAPES[4]
    dtype: torch.dtype = torch.float32
    layout: str = "first"
    grad_layout: str = "first"
    backend: str = "numba_cpu"
    training: bool = True
    steps: int = 1
    mean: float = 0.0
    groups: int = 2
    act: str | None = None
    residual: bool = False
    device: str = "cpu"
    threads: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [self.norm]
        for f in fields(self)[1:]:
            value = getattr(self, f.name)
            if f.name == "options":
                shown += [f"{k}={v}" for k, v in value.items()]
            elif value != f.default:
                text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")
                shown.append(f"{f.name}={text}")
        return "-".join(shown)


@dataclass
class Result:
    """What a layer answered to one input and one incoming gradient."""

    y: Tensor
    grads: dict[str, Tensor]
    running: dict[str, Tensor]


def check(case: Case) -> None:
    """Raise AssertionError unless our layer agrees with the oracle and with torch's layer."""
    generator = torch.Generator().manual_seed(sum(map(ord, str(case))))
    ours, stock = our_layer(case), stock_layer(case)
    randomize(ours, generator)
    assert list(ours.state_dict()) == list(stock.state_dict()), "state_dict keys differ from torch's"
    stock.load_state_dict(ours.state_dict())
    known = {k: v.clone() for k, v in ours.state_dict().items()}
    for layer in (ours, stock):
        layer.train(case.training)
    for step in range(case.steps):
        x = make_input(case, generator)
        dy = arrange(torch.randn(case.shape, dtype=case.dtype, generator=generator), case.grad_layout)
        r = make_input(case, generator) - case.mean if case.residual else None
        with backend(case.backend), threads(case.threads):
            got = run(ours.to(case.device), x, dy, r, case.device)
        same_form(got.y, x, "y")
        same_form(got.grads["x"], x, "dx")
        want = oracle(case, x, dy, known, r)
        where = f"{case}, step {step}: "
        terms = x[:, 0].numel() ** 0.5  # rounding errors of long sums add up like a random walk
        # half precision is rounded at the end: once, or with a residual's gradient on the way twice
        ulps = ULPS * max(1, terms / 16) if case.dtype.itemsize > 2 else 4
        compare(got, want, ulps, where + "against the float64 oracle: ")
        if abs(case.mean) <= 10 and case.dtype.itemsize > 2:  # further out, and in less, torch's layers lose digits
            compare(got, run(stock, x, dy, r), STOCK_ULPS * max(1, terms / 4), where + "against torch's layer: ")
        known = {k: v.cpu().clone() for k, v in ours.state_dict().items()}
    assert list(ours.state_dict()) == list(stock.state_dict()), "state_dict keys changed"


# --- the layers ----------------------------------------------------------------------------------------------------


def our_layer(case: Case) -> nn.Module:
    """normlab's layer of a case."""
    groups = {"groups": case.groups} if case.norm == "gn" else {}
    act = {"act": case.act} if case.act else {}
    return normlab.make_norm(case.norm, case.shape[1], dtype=case.dtype, **groups, **act, **case.options)


def stock_layer(case: Case) -> nn.Module:
    """torch's layer of a case: a torch.nn class, or where there is none torch's functions in a row."""
    rank, channels = len(case.shape), case.shape[1]
    options = {"affine": True, **case.options}
    bias = options.pop("bias", True)
    layer: nn.Module
    if case.norm == "bn":
        layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2](channels, **options)
    elif case.norm == "in":
        layer = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 3](channels, **options)
    elif case.norm == "gn":
        layer = nn.GroupNorm(case.groups, channels, **options)
    else:
        layer = (StockLayer if case.norm == "ln" else StockBatchInstance)(channels, **options)
    if not bias:
        layer.bias = None
    return fused(layer.to(case.dtype), case.act)


def fused(layer: nn.Module, act: str | None) -> nn.Module:
    """The layer with act(layer(x) + residual) for its forward pass, written out; its parameters keep their names."""
    forward = layer.forward

    def composed(x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ACTS[act](forward(x) if residual is None else forward(x) + residual)

    layer.forward = composed  # type: ignore[method-assign]
    return layer


class StockLayer(nn.Module):
    """torch.nn.functional.layer_norm over all but the samples, and one weight and bias per channel."""

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return per_channel(self, F.layer_norm(x, x.shape[1:], eps=self.eps))


class StockBatchInstance(nn.Module):
    """The gate's mixture of torch's batch norm and instance norm."""

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.rho = nn.Parameter(torch.ones(channels))
        # batch norm's own buffers, under the mixture's names
        norm = nn.BatchNorm2d(channels, eps, momentum, affine=False, track_running_stats=track_running_stats)
        norm._check_input_dim = lambda x: None  # type: ignore[method-assign]
        self.__dict__["batch"] = norm
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        self.batch.train(self.training)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self.batch, name, getattr(self, name))
        rho = channels_of(self.rho, x)
        mixture = rho * self.batch(x) + (1 - rho) * F.instance_norm(x, eps=self.batch.eps)
        self.num_batches_tracked = self.batch.num_batches_tracked
        return per_channel(self, mixture)


def randomize(layer: nn.Module, generator: torch.Generator) -> None:
    """Parameters and running statistics that no mistake can hide behind."""
    with torch.no_grad():
        for name, v in layer.state_dict().items():
            if name == "num_batches_tracked":
                v.fill_(3)
            elif name in ("rho", "running_var"):
                v.copy_(torch.rand(v.shape, generator=generator) * 0.9 + 0.05)
            else:
                v.copy_(torch.randn(v.shape, generator=generator) * 0.5 + (name == "weight"))


# --- inputs --------------------------------------------------------------------------------------------------------


def make_input(case: Case, generator: torch.Generator) -> Tensor:
    """x ~ N(mean, 1) of a case's shape, dtype and layout."""
    x = (torch.randn(case.shape, generator=generator).double() + case.mean).to(case.dtype)
    # batch norm of equal samples with one position each would have no variance
    return arrange(x, case.layout, repeat=1 if (case.norm, x.dim()) == ("bn", 2) else 0)


def arrange(x: Tensor, layout: str, repeat: int = 0) -> Tensor:
    """The same numbers in another memory layout; "expanded" repeats the first sample, or channel with repeat=1."""
    if layout == "first":
        return x.contiguous()
    if layout == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "transposed":
        axes = tuple(reversed(range(x.dim())))
        return x.permute(axes).contiguous().permute(axes)
    assert layout == "expanded"
    return x.narrow(repeat, 0, 1).expand(x.shape)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run normlab on a backend; "auto" lets it choose."""
    with normlab.use_backend(name) if name != "auto" else nullcontext():
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and so normlab, use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(layer: nn.Module, x: Tensor, dy: Tensor, residual: Tensor | None = None, device: str = "cpu") -> Result:
    """Forward and backward of a layer on its device; the answers are on the CPU."""
    x = x.detach().to(device).requires_grad_()
    added = [] if residual is None else [residual.detach().to(device).requires_grad_()]
    y = layer(x, *added)
    named = [("x", x), *(("residual", r) for r in added), *layer.named_parameters()]
    names, parameters = zip(*named, strict=True)
    grads = [g.cpu() for g in torch.autograd.grad(y, parameters, dy.to(device))]
    running = {k: v.cpu().clone() for k, v in layer.named_buffers()}
    return Result(y.detach().cpu(), dict(zip(names, grads, strict=True)), running)


# --- the oracle ----------------------------------------------------------------------------------------------------


def oracle(case: Case, x: Tensor, dy: Tensor, state: dict[str, Tensor], residual: Tensor | None = None) -> Result:
    """The textbook in float64: formulas of the norms, gradients by autograd, running statistics by definition."""
    x = x.double().requires_grad_()
    added = {} if residual is None else {"residual": residual.double().requires_grad_()}
    p = {k: v.double() for k, v in state.items()}
    leaves = {k: p[k].requires_grad_() for k in p if k in ("weight", "bias", "rho")}
    eps = case.options.get("eps", 1e-5)
    y = normalized(case, x, p, eps)
    if "weight" in p:
        y = y * channels_of(p["weight"], x)
    if "bias" in p:
        y = y + channels_of(p["bias"], x)
    y = ACTS[case.act](y + added["residual"] if added else y)
    leaves = {"x": x, **added, **leaves}
    grads = torch.autograd.grad(y, list(leaves.values()), dy.double())
    return Result(y.detach(), dict(zip(leaves, grads, strict=True)), new_running(case, x.detach(), state))


def normalized(case: Case, x: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps), before weight and bias."""
    positions = tuple(range(2, x.dim()))
    fixed = not case.training and "running_mean" in p

    def over(*dims: int) -> Tensor:
        mean = x.mean(dims, keepdim=True)
        return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(dims, keepdim=True) + eps)

    def by_running() -> Tensor:
        return (x - channels_of(p["running_mean"], x)) / torch.sqrt(channels_of(p["running_var"], x) + eps)

    if case.norm == "bn":
        return by_running() if fixed else over(0, *positions)
    if case.norm == "in":
        return by_running() if fixed else over(*positions)
    if case.norm == "bin":
        rho = channels_of(p["rho"], x)
        return rho * (by_running() if fixed else over(0, *positions)) + (1 - rho) * over(*positions)
    groups = 1 if case.norm == "ln" else case.groups
    parts = x.reshape(x.shape[0], groups, -1)
    mean = parts.mean(2, keepdim=True)
    var = ((parts - mean) ** 2).mean(2, keepdim=True)
    return ((parts - mean) / torch.sqrt(var + eps)).reshape(x.shape)


def new_running(case: Case, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Running statistics after a step: `old + momentum * (new - old)`, of the unbiased variance."""
    old = {k: v for k, v in state.items() if k not in ("weight", "bias", "rho")}
    if not old or not case.training:
        return old
    positions = tuple(range(2, x.dim()))
    over = (0, *positions) if case.norm != "in" else positions
    mean, var = x.mean(over), x.var(over, correction=1)
    if case.norm == "in":
        return {
            "running_mean": mixed(old["running_mean"], mean.mean(0), case.options.get("momentum", 0.1)),
            "running_var": mixed(old["running_var"], var.mean(0), case.options.get("momentum", 0.1)),
            "num_batches_tracked": old["num_batches_tracked"],
        }
    count = old["num_batches_tracked"] + 1
    momentum = case.options.get("momentum", 0.1)
    momentum = 1 / float(count) if momentum is None else momentum
    return {
        "running_mean": mixed(old["running_mean"], mean, momentum),
        "running_var": mixed(old["running_var"], var, momentum),
        "num_batches_tracked": count,
    }


def mixed(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return old.double() + momentum * (new - old.double())


# --- comparing -----------------------------------------------------------------------------------------------------


def same_form(got: Tensor, x: Tensor, what: str) -> None:
    """Shape, dtype and memory format as the input's; an input dense in neither format is answered channels-first."""
    assert got.shape == x.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(x.shape)}"
    assert got.dtype == x.dtype, f"{what}: dtype {got.dtype}, expected {x.dtype}"
    last = x.movedim(1, -1)
    if last.is_contiguous() and not x.is_contiguous():
        assert got.movedim(1, -1).is_contiguous(), f"{what}: strides {got.stride()} are not channels-last"
    else:
        assert got.is_contiguous(), f"{what}: strides {got.stride()} are not channels-first"


def compare(got: Result, want: Result, ulps: float, where: str) -> None:
    """Every number of two results, to so many rounding errors of the largest number expected."""
    assert list(got.grads) == list(want.grads), f"{where}gradients of {list(got.grads)}, not {list(want.grads)}"
    assert list(got.running) == list(want.running), f"{where}buffers {list(got.running)}, not {list(want.running)}"
    pairs = {
        "y": (got.y, want.y),
        **{f"d{k}": (got.grads[k], want.grads[k]) for k in want.grads},
        **{k: (got.running[k], want.running[k]) for k in want.running},
    }
    for name, (a, b) in pairs.items():
        assert a.shape == b.shape, f"{where}{name} has shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        bound = ulps * unit(a.dtype) * (1 + float(b.abs().max()))
        error = float((a.double() - b.double()).abs().max())
        assert error <= bound, f"{where}{name} is off by {error:.2e}, allowed {bound:.2e}"


def unit(dtype: torch.dtype) -> float:
    """Rounding error of a dtype; 0 for integers."""
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def channels_of(v: Tensor, x: Tensor) -> Tensor:
    """One number per channel, to broadcast with x."""
    return v.reshape(1, -1, *[1] * (x.dim() - 2))


def per_channel(layer: Any, y: Tensor) -> Tensor:
    """A layer's weight and bias, those that it has, one per channel."""
    if layer.weight is not None:
        y = y * channels_of(layer.weight, y)
    return y if layer.bias is None else y + channels_of(layer.bias, y)
