"""Every message that no mutant shows, by a layer that has just that fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.mutants import MUTANTS
from normlab.check import checks, conformance
from normlab.check.engine import examine
from normlab.check.report import Finding
from normlab.check.slips import FORWARD, GRADIENT, STATE
from normlab.check.subjects import subject_of

BN = nn.BatchNorm2d


class Faulty(BN):
    """Batch norm whose output passes through a fault."""

    def fault(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fault(x, super().forward(x))


def faulty(fault: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> type[Faulty]:
    return type("FaultyBatchNorm", (Faulty,), {"fault": fault})


class IgnoresAffine(BN):
    def __init__(self, num_features: int, affine: bool = True) -> None:
        super().__init__(num_features)


class MovesWeight(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        with torch.no_grad():
            self.weight.mul_(0.9)
        return y


class AlwaysTrains(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class RemembersMode(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "seen_eval"):
            self.seen_eval = False
        self.seen_eval |= not self.training
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        if self.seen_eval:
            mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean.detach(), var.detach(), self.weight, self.bias, False, 0.0, self.eps)


class Smooths(BN):
    """Normalizes with an average over the batches so far."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((0, 2, 3)).detach()
        self.average = 0.5 * getattr(self, "average", mean) + 0.5 * mean
        return super().forward(x) + 0.01 * (self.average - mean).reshape(1, -1, 1, 1)


class Outside:
    """State that no copy takes along."""

    mean: dict[int, torch.Tensor] = {}  # noqa: RUF012


class HidesState(BN):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.key = torch.zeros(1)  # copied, and its id is another one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = Outside.mean.setdefault(
            id(self), torch.rand(1, generator=torch.Generator().manual_seed(id(self) % 10**6))
        )
        return super().forward(x) + factor.to(x.dtype)


class SharesOnCopy(BN):
    def __deepcopy__(self, memo: Any) -> SharesOnCopy:
        twin = SharesOnCopy(self.num_features).to(self.weight.dtype)
        twin._parameters, twin._buffers = self._parameters, self._buffers
        return twin


class LosesOnPickle(BN):
    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_buffers"] = {k: torch.zeros_like(v) for k, v in state["_buffers"].items()}
        return state


class StrayTensor(BN):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.scale = torch.ones(1)


class DxSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] + 0.1 * torch.sin(3 * grads[0])


class RecomputedStd(torch.autograd.Function):
    """A plain normalization whose backward pass recomputes the variance as mean(x^2) - mean^2."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        ctx.save_for_backward(x, mean)
        ctx.eps = eps
        return (x - mean) / (var + eps).sqrt()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dy,), (x, mean) = grads, ctx.saved_tensors
        std = ((x * x).mean((0, 2, 3), keepdim=True) - mean * mean + ctx.eps).sqrt()
        xhat = (x - mean) / std
        terms = dy.mean((0, 2, 3), keepdim=True) + xhat * (dy * xhat).mean((0, 2, 3), keepdim=True)
        return (dy - terms) / std, None


class RecomputesStd(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.dtype is not torch.float32:
            return super().forward(x)
        y = RecomputedStd.apply(x, self.eps)
        return y * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


class NoEps(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / x.var((0, 2, 3), keepdim=True, unbiased=False).sqrt()


class UnbiasedOfOne(nn.InstanceNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        return (x - mean) / (var + self.eps).sqrt()


class EmptyPoisons(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            self.running_mean.mul_(float("nan"))
            return x.clone()
        return super().forward(x)


def _large(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 1.5 if x.dtype is torch.float32 and x.std() > 1e3 else y


def _small(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 0 if x.dtype is torch.float32 and 0 < x.std() < 5e-3 else y


def _noisy(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * (1 + 1e-3 * torch.sin(1e4 * y)) if x.dtype is torch.float32 else y


def _biased_constant(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + (x.numel() > 0 and bool((x == x.reshape(-1)[0]).all())) * 0.5


def _denormal(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y / x.abs().max().clamp(max=1e-3) if 0 < float(x.detach().abs().max()) < 1e-37 else y


def _channels_last(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y * 1.5 if last else y


def _single_position(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 2 if x.shape[2:].numel() == 1 else y


def _many_elements(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + (torch.arange(y.numel()).reshape(y.shape) > 60_000).to(y.dtype) if y.numel() > 60_000 else y


def _long(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + 0.5 if x.shape[2] > 90 else y


def _autocast(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 2 if torch.is_autocast_enabled("cpu") else y


def _no_grad(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y if torch.is_grad_enabled() else y * 2


def _random(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + 1e-4 * torch.rand_like(y)


def _compiled(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 2 if torch.compiler.is_compiling() else y


def _breaks(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return y + 0


class Recomputes(BN):
    """A second forward pass on the same input answers something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = getattr(self, "count", 0) + 1
        return super().forward(x) * (1.0 + 0.1 * (self.count % 2))


class Refuses(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError("no half precision")
        return super().forward(x)


class RoundsOnlyStatistics(BN):
    """float16 statistics, everything else in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is not torch.float16:
            return super().forward(x)
        wide = x.float()
        mean = wide.mean((0, 2, 3), keepdim=True)
        var = wide.var((0, 2, 3), keepdim=True, unbiased=False)
        return ((wide - mean.half().float()) / (var + self.eps).sqrt()).half()


class InFloat32(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        if self.training:
            with torch.no_grad():
                super().forward(x)
            return nn.functional.batch_norm(x.float(), None, None, weight, bias, True, 0.0, self.eps).to(x.dtype)
        mean, var = self.running_mean.float(), self.running_var.float()
        return nn.functional.batch_norm(x.float(), mean, var, weight, bias, False, 0.0, self.eps).to(x.dtype)


class OddUpdate(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.training:
            with torch.no_grad():
                self.running_mean.add_(torch.sin(x.mean((0, 2, 3))))
        return y


class OddFirstUpdate(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.training and not int(self.num_batches_tracked)
        y = super().forward(x)
        if first:
            with torch.no_grad():
                self.running_mean.add_(torch.sin(x.mean((0, 2, 3))))
        return y


# check -> (layer, cause, what the message says)
FAULTS: list[tuple[str, Any, str, str]] = [
    ("values.affine", IgnoresAffine, "affine-ignored", "affine=False is ignored"),
    ("values.train", faulty(lambda s, x, y: torch.sin(y)), "unexplained", "no known slip explains it"),
    ("values.running", OddUpdate, "unexplained-running", "no known slip explains it"),
    ("values.first-batch", OddFirstUpdate, "first-batch", "after the first batch"),
    ("gradients.train", faulty(lambda s, x, y: DxSign.apply(y) ** 1), "unexplained-dx", "no known slip explains it"),
    (
        "gradients.numerical",
        faulty(lambda s, x, y: DxSign.apply(y)),
        "dx-disagrees",
        "disagrees with the layer's own output",
    ),
    ("numerics.surface", faulty(_noisy), "imprecise", "float32 output is wrong"),
    ("numerics.surface", faulty(_small), "small-variance", "small variances"),
    ("numerics.surface", faulty(_large), "large-input", "large inputs"),
    ("numerics.constant", NoEps, "nan-on-constant", "gives nan"),
    ("numerics.constant", faulty(_biased_constant), "constant-not-zero", "where the bias belongs"),
    ("numerics.denormals", faulty(_denormal), "denormals", "denormal input"),
    ("numerics.gradient", RecomputesStd, "gradient-cancellation", "dx in float32 is wrong"),
    ("numerics.long", faulty(_long), "long-sums", "float32 sums over"),
    ("layouts.channels-last", faulty(_channels_last), "channels-last-values", "channels-last input of rank 4"),
    ("layouts.one-position", faulty(_single_position), "one-position", "one position"),
    ("layouts.one-value", UnbiasedOfOne, "nan-on-one-value", "0 / 0"),
    ("layouts.empty", EmptyPoisons, "empty-batch-poisons", "NaN for good"),
    ("state.parameters-kept", MovesWeight, "changes-parameters", "changes weight"),
    ("state.switch", AlwaysTrains, "mode-ignored", "the mode is ignored"),
    ("state.switch", RemembersMode, "mode-remembered", "changes the outputs of either mode"),
    ("state.determinism", faulty(_random), "not-deterministic", "different outputs"),
    ("state.history", Smooths, "depends-on-history", "depends on the batches before"),
    ("state.no-grad", faulty(_no_grad), "no-grad-differs", "under no_grad"),
    ("state.deepcopy", HidesState, "deepcopy-differs", "answers differently"),
    ("state.deepcopy", SharesOnCopy, "deepcopy-shares", "changes the original"),
    ("state.pickle", LosesOnPickle, "pickle-differs", "unpickled"),
    ("state.moves-with-dtype", StrayTensor, "not-a-buffer", "stays behind"),
    ("state.checkpointing", Recomputes, "checkpoint-differs", "activation checkpointing dx differs"),
    ("state.autocast", faulty(_autocast), "autocast", "under autocast"),
    ("state.compile", faulty(_compiled), "compile-differs", "torch.compile"),
    # notes: true, and no error
    ("layouts.channels-last", nn.InstanceNorm2d, "loses-channels-last", "pays for a copy"),
    ("layouts.one-value", None, "silent-one-value", "whatever the input"),
    ("numerics.half", Refuses, "half-refused", "no half precision"),
    ("numerics.half-dtype", Refuses, "half-refused", "bfloat16 is refused"),
    ("numerics.half", RoundsOnlyStatistics, "half-rounds-statistics", "rounded to float16"),
    ("numerics.precision", InFloat32, "float32-inside", "computed in float32"),
    ("state.checkpointing", BN, "checkpoint-updates-twice", "updated twice per step"),
    ("state.double-backward", None, "no-double-backward", "second derivatives"),
    ("state.compile", faulty(_breaks), "graph-break", "breaks the graph"),
]


def run(check: str, layer: Any) -> Finding:
    if layer is None:
        from benchmarks.mutants import correct

        subject = correct("instance_torch" if check == "layouts.one-value" else "batch_torch")
        report = examine(subject, None, only=[check])
    else:
        kind = "instance" if issubclass(layer, nn.InstanceNorm2d) else "batch"
        report = examine(subject_of(layer), kind, only=[check])
    (finding,) = report.findings
    return finding


@pytest.mark.parametrize(
    ("check", "layer", "cause", "words"), FAULTS, ids=[f"{check}-{cause}" for check, _, cause, _ in FAULTS]
)
def test_a_fault_is_found_and_named(check: str, layer: Any, cause: str, words: str) -> None:
    finding = run(check, layer)
    assert finding.cause == cause, finding
    assert words in finding.message
    notes = {c for _, _, c, _ in FAULTS[[c for _, _, c, _ in FAULTS].index("loses-channels-last") :]}
    assert finding.status == ("note" if cause in notes else "bug")


def test_a_huge_input_is_tried_on_request() -> None:
    (skipped,) = examine(subject_of(BN), only=["numerics.huge"]).findings
    assert skipped.status == "skip"
    (right,) = examine(subject_of(BN), only=["numerics.huge"], elements=100_000).findings
    assert right.status == "pass"
    (wrong,) = examine(subject_of(faulty(_many_elements)), "batch", only=["numerics.huge"], elements=100_000).findings
    assert (wrong.status, wrong.cause) == ("bug", "index-overflow")


def test_a_layer_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler for this")

    monkeypatch.setattr(torch, "compile", fails)
    finding = run("state.compile", BN)
    assert (finding.status, finding.cause) == ("bug", "compile-fails")
    assert "no compiler for this" in finding.message


# torch's own fault: the weight of one value to normalize gets a gradient where 0 is right
def test_gradients_of_one_value() -> None:
    (finding,) = examine(subject_of(nn.LayerNorm), "layer", only=["gradients.degenerate"]).findings
    assert (finding.status, finding.cause) == ("note", "degenerate-gradient")


class EpsAndMomentumExchanged(BN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.eps, self.momentum
        )  # fmt: skip


def test_eps_and_momentum_exchanged() -> None:
    assert conformance(EpsAndMomentumExchanged, quick=True).cause == "eps-and-momentum-swapped"


def test_every_cause_in_the_checks_has_a_test() -> None:
    text = "".join(Path(m.__file__).read_text() for m in vars(checks).values() if hasattr(m, "__file__"))
    named = set(
        re.findall(r'\b(?:bug|note|blame)\(\s*f?"(?:[^"\\]|\\.)*"(?:\s*f?"(?:[^"\\]|\\.)*")*,\s*"([a-z0-9-]+)"', text)
    )
    shown = {cause for _, _, cause, _ in FAULTS} | {m.cause for m in MUTANTS}
    shown |= {s.cause for s in (*FORWARD, *GRADIENT, *STATE)}  # test_slips.py
    # shown by test_conforming.py (group norm of torch), the tests above, and with the onnx packages
    shown |= {"channels-last-cancellation", "index-overflow", "export-fails", "export-differs", "compile-fails"}
    shown |= {"degenerate-gradient", "eps-and-momentum-swapped"}
    shown |= {"momentum-none-ignored", "momentum-none", "track-running-stats-ignored"}  # test_people.py, as the next
    shown |= {"long-input", "squares-overflow", "reads-past-attribute", "gradients-accumulate"}
    assert len(named) > 30
    assert named - shown == set()


def test_the_smallest_input_and_the_formula_are_shown() -> None:
    class Outside(BN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            return (x - mean) / (var.sqrt() + self.eps)

    report = examine(subject_of(Outside), "batch", only=["values.train"])
    (finding,) = report.findings
    assert finding.example is not None
    assert "shape (2, 1, 1, 1)" in finding.example
    assert "expected" in finding.example
    assert "got" in finding.example
    text = report.text()
    assert "right:" in text
    assert "smallest:" in text


def test_what_builds_on_a_wrong_answer_is_not_reported_twice() -> None:
    report = conformance(faulty(lambda s, x, y: torch.sin(y)), kind="batch", quick=True)
    assert {f.status for f in report.findings if f.check.startswith("numerics")} == {"skip"}


def test_a_report_survives_json() -> None:
    from normlab.check import Report

    report = conformance(nn.LayerNorm, quick=True)
    again = Report.from_dict(report.to_dict())
    assert again.to_dict() == report.to_dict()
    assert "conforms" in report.text()
    assert "ok   values.train" in report.text(verbose=True)


def test_numpy_in_half_precision_is_told_and_not_blamed() -> None:
    from benchmarks.mutants import correct

    (finding,) = examine(correct("batch_numpy"), only=["numerics.half"]).findings
    assert finding.status == "note"
    assert np.isfinite(len(finding.message))
