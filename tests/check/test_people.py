"""What people wrote and the kit once got wrong: right code that it failed, and slips that it did not name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from normlab.check import Report
from normlab.check.engine import examine
from normlab.check.report import FAULT_OF_THE_CHECK, PARTS
from normlab.check.subjects import TargetFailure, subject_of

MATHEMATICS = ("target", "values", "gradients", "layouts.one-sample", "layouts.other-sizes")


def looked_at(layer: Any, kind: str | None = None, only: tuple[str, ...] = MATHEMATICS) -> Report:
    report = examine(subject_of(layer, kind=kind), kind, quick=True, only=only)
    assert FAULT_OF_THE_CHECK not in [f.cause for f in report.findings], report.text()
    return report


def finding(layer: Any, check: str, kind: str | None = None) -> tuple[str, str | None]:
    (found,) = looked_at(layer, kind, (check,)).findings
    return found.status, found.cause


def standardized(x: torch.Tensor, axes: tuple[int, ...], eps: float) -> torch.Tensor:
    mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + eps)


class OwnNames(nn.Module):
    """A layer norm whose parameters bear any names."""

    names = ("alpha", "delta")

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        for name, value in zip(self.names, (1.0, 0.0), strict=True):
            self.register_parameter(name, nn.Parameter(torch.full((features,), value)))

    def combine(self, xhat: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return weight * xhat + bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.combine(standardized(x, (-1,), self.eps), *(getattr(self, name) for name in self.names))


class SquaredWeight(OwnNames):
    names = ("a_2", "b_2")

    def combine(self, xhat: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return weight**2 * xhat - bias


class SquaredAffine(SquaredWeight):
    names = ("affine_weight", "affine_bias")


# parameters were recognized by their names alone: these said "affine: none" and conformed
@pytest.mark.parametrize("layer", [SquaredWeight, SquaredAffine])
def test_parameters_are_recognized_by_what_they_do(layer: Any) -> None:
    assert set(looked_at(layer, "layer").causes) == {"weight-twice", "bias-subtracted"}


# a weight called alpha was taken for a gate, and the kit crashed
def test_a_name_is_not_taken_for_another_norm_s_parameter() -> None:
    report = looked_at(OwnNames, "layer")
    assert report.ok, report.text()
    assert "weight (6,), bias (6,)" in report.dialect["affine"]


def batchnorm_forward(x: NDArray, gamma: NDArray, beta: NDArray, bn_param: dict[str, Any]) -> tuple[NDArray, Any]:
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    mean = bn_param.get("running_mean", np.zeros(x.shape[1]))
    var = bn_param.get("running_var", np.zeros(x.shape[1]))
    if bn_param["mode"] == "test":
        return gamma * (x - mean) / np.sqrt(var + eps) + beta, None
    std = np.sqrt(x.var(axis=0) + eps)
    xhat = (x - x.mean(axis=0)) / std
    bn_param["running_mean"] = momentum * mean + (1 - momentum) * x.mean(axis=0)
    bn_param["running_var"] = momentum * var + (1 - momentum) * x.var(axis=0)
    return gamma * xhat + beta, (xhat, std, gamma)


def batchnorm_backward(dout: NDArray, cache: Any) -> tuple[NDArray, NDArray, NDArray]:
    xhat, std, gamma = cache
    g = dout * gamma
    dx = (g - g.mean(axis=0) - xhat * (g * xhat).mean(axis=0)) / std
    return dx, (dout * xhat).sum(axis=0), dout.sum(axis=0)


# two bugs, "cannot unpack NoneType": no course asks for a backward pass at test time
def test_a_pair_without_a_cache_in_test_mode() -> None:
    report = looked_at((batchnorm_forward, batchnorm_backward), "batch")
    assert report.ok, report.text()


def layernorm_forward(x: NDArray, gamma: NDArray, beta: NDArray, ln_param: dict[str, Any]) -> tuple[NDArray, Any]:
    flipped = x.T
    std = np.sqrt(flipped.var(axis=0) + ln_param.get("eps", 1e-5))
    xhat = ((flipped - flipped.mean(axis=0)) / std).T
    return gamma * xhat + beta, (xhat, std, gamma)


def layernorm_backward(dout: NDArray, cache: Any) -> tuple[NDArray, NDArray, NDArray]:
    xhat, std, gamma = cache
    g, flipped = (dout * gamma).T, xhat.T
    dx = (g - g.mean(axis=0) - flipped * (g * flipped).mean(axis=0)) / std
    return dx.T, (dout * xhat).sum(axis=0), dout.sum(axis=0)


# five bugs on 4-D input, which the convention does not promise
def test_a_layer_norm_of_rows_is_asked_for_rows() -> None:
    report = looked_at((layernorm_forward, layernorm_backward), "layer")
    assert report.ok, report.text()


class PlainStatistics(nn.Module):
    """Batch norm with its statistics as plain attributes in float32."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.running_mean, self.running_var = torch.zeros(num_features), torch.ones(num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            n, m = x.numel() // x.shape[1], self.momentum
            self.running_mean = ((1 - m) * self.running_mean + m * mean.detach()).float()
            self.running_var = ((1 - m) * self.running_var + m * var.detach() * n / (n - 1)).float()
        return (x - mean.reshape(1, -1, 1, 1)) / torch.sqrt(var.reshape(1, -1, 1, 1) + self.eps)


# "not updated": float32 state was compared at float64, and a slip was fitted to rounding
def test_statistics_in_plain_attributes_are_seen_to_move() -> None:
    report = looked_at(PlainStatistics, "batch")
    assert report.ok, report.text()


class WholeSample(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2)).reshape(-1, 1, 1)
        var = x.var((1, 2), unbiased=False).reshape(-1, 1, 1)
        return self.weight * (x - mean) / torch.sqrt(var + self.eps)


# the probe crashed, "cannot reshape", and the layer was blamed
def test_a_layer_norm_over_all_but_the_batch_of_rank_three() -> None:
    report = looked_at(WholeSample)
    assert report.ok, report.text()
    assert report.dialect["pools over"] == "all channels and positions"


def test_an_error_of_the_kit_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise ValueError("cannot reshape array of size 120")

    monkeypatch.setattr("normlab.check.engine.prepare", broken)
    (said,) = examine(subject_of(nn.LayerNorm)).findings
    assert (said.status, said.cause) == ("skip", FAULT_OF_THE_CHECK)
    assert "this is a fault of the check, not of the layer" in said.message


class OverSomeAxes(nn.Module):
    axes: tuple[int, ...] = ()

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return standardized(x, self.axes, self.eps)


@pytest.mark.parametrize(
    ("kind", "axes", "pools", "forgotten"),
    [
        ("batch", (0, 2), "the batch and axis 2 (not axis 3)", "axis 3 is forgotten"),
        ("batch", (0, 3), "the batch and axis 3 (not axis 2)", "axis 2 is forgotten"),
        ("instance", (3,), "axis 3 (not axis 2)", "axis 2 is forgotten"),
        ("layer", (1, 2), "all channels and axis 2 (not axis 3)", "axis 3 is forgotten"),
    ],
)
# shown as "batch and positions"
def test_a_forgotten_axis_is_seen_and_named(kind: str, axes: tuple[int, ...], pools: str, forgotten: str) -> None:
    report = looked_at(type("Partial", (OverSomeAxes,), {"axes": axes}), kind, ("values.train",))
    assert report.dialect["pools over"] == pools
    assert report.cause == "axis-forgotten"
    assert forgotten in report.bugs[0].message


def test_a_batch_norm_of_each_position_by_itself() -> None:
    report = looked_at(type("Partial", (OverSomeAxes,), {"axes": (0,)}), "batch", ("values.train",))
    assert report.dialect["pools over"] == "the batch alone, each position by itself"
    assert report.cause == "pools-batch-only"


class RowsObject:
    """A NumPy layer object; momentum weighs the new batch, or the old values."""

    weighs_new = True

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        self.gamma, self.beta, self.eps, self.momentum = np.ones(dim), np.zeros(dim), eps, momentum
        self.running_mean, self.running_var = np.zeros(dim), np.ones(dim)

    def forward(self, x: NDArray, training: bool = True) -> NDArray:
        mean, var = self.running_mean, self.running_var
        if training:
            mean, var = x.mean(axis=0), x.var(axis=0)
            m = self.momentum if self.weighs_new else 1 - self.momentum
            self.running_mean = (1 - m) * self.running_mean + m * mean
            self.running_var = (1 - m) * self.running_var + m * var
        self.std = np.sqrt(var + self.eps)
        self.xhat = (x - mean) / self.std
        return self.gamma * self.xhat + self.beta

    def backward(self, dy: NDArray) -> NDArray:
        self.dgamma, self.dbeta, g = (dy * self.xhat).sum(axis=0), dy.sum(axis=0), dy * self.gamma
        return (g - g.mean(axis=0) - self.xhat * (g * self.xhat).mean(axis=0)) / self.std


class CourseMomentum(RowsObject):
    weighs_new = False

    def __init__(self, dim: int, momentum: float = 0.9, eps: float = 1e-5) -> None:
        super().__init__(dim, momentum, eps)


class Reversed(RowsObject):
    weighs_new = False


# "the wrong way round": modules had one rule for momentum, objects another
def test_one_rule_for_momentum() -> None:
    for layer in (RowsObject, CourseMomentum):
        assert looked_at(layer, "batch").ok
    assert looked_at(Reversed, "batch").cause == "momentum-swapped"


class Config:
    dim, eps = 6, 1e-5


class Configured(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class ConfiguredRows(RowsObject):
    def __init__(self, config: Config) -> None:
        super().__init__(config.dim, eps=config.eps)


def make_module() -> Any:
    return Configured(Config())


def make_rows() -> Any:
    return ConfiguredRows(Config())


def make_pair() -> Any:
    return layernorm_forward, layernorm_backward


# the advice led to the next error
@pytest.mark.parametrize(("factory", "kind"), [(make_module, "layer"), (make_rows, "batch"), (make_pair, "layer")])
def test_factories_build_any_kind_of_layer(factory: Any, kind: str) -> None:
    report = looked_at(factory, kind)
    assert report.ok, report.text()


@pytest.mark.parametrize("layer", [Configured, ConfiguredRows])
def test_a_layer_that_is_built_from_more_than_a_number_is_told_the_way(layer: Any) -> None:
    with pytest.raises(TargetFailure, match=r"give a function without arguments.*make\(\): return Config") as e:
        subject_of(layer)
    assert "config=6, a number of channels" in str(e.value)


def backward_of_means(dout: NDArray, cache: Any) -> tuple[NDArray, NDArray, NDArray]:
    dx, dgamma, dbeta = batchnorm_backward(dout, cache)
    return dx, dgamma / len(dout), dbeta / len(dout)


class ReversedUnbiased(RowsObject):
    def forward(self, x: NDArray, training: bool = True) -> NDArray:
        before, n = (self.running_mean, self.running_var), len(x)
        y = super().forward(x, training)
        if training:
            m = 1 - self.momentum
            self.running_mean = (1 - m) * before[0] + m * x.mean(axis=0)
            self.running_var = (1 - m) * before[1] + m * x.var(axis=0) * (n - 1) / n
        return y


# one of the two was named
def test_two_faults_are_both_named() -> None:
    report = looked_at((batchnorm_forward, backward_of_means), "batch")
    assert report.causes == ["dweight-mean", "dbias-mean"]
    report = looked_at(ReversedUnbiased, "batch", ("values.running",))
    assert report.causes == ["momentum-swapped", "running-var-correction-inverted"]
    assert "two slips" in report.bugs[0].message


class ManyFaults(PlainStatistics):
    """Wrong mathematics, state that no state_dict keeps, and an input that is changed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


# the first bug of a report was not always its root
def test_the_mathematics_come_first() -> None:
    report = looked_at(ManyFaults, "batch", ("values", "state.state-dict", "state.moves-with-dtype"))
    causes = [f.cause for f in report.bugs]
    assert {"state-not-saved", "not-a-buffer"} <= set(causes)
    assert report.cause == next(f.cause for f in report.bugs if f.check == "values.train")
    text = report.text()
    assert [text.index(f"\n{part}: ") for part in PARTS if f"\n{part}: " in text] == sorted(
        text.index(f"\n{part}: ") for part in PARTS if f"\n{part}: " in text
    )


class OnePlus(nn.Module):
    """RMS norm as Gemma writes it: the weight starts from zero, and one is added."""

    start, added = 0.0, 1.0

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.full((dim,), self.start)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype is torch.float64 else x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (self.added + self.weight.to(y.dtype))).to(x.dtype)


class OneTooMany(OnePlus):
    start = 1.0


class OneForgotten(OnePlus):
    added = 0.0


def test_a_weight_to_which_one_is_added() -> None:
    report = looked_at(OnePlus, "rms")
    assert report.ok, report.text()
    assert "1 + weight is applied, as in Gemma" in report.dialect["affine"]
    assert looked_at(OneTooMany, "rms").causes == ["weight-plus-one"]
    forgotten = looked_at(OneForgotten, "rms", ("values",))
    assert forgotten.causes == ["initial-weight"]
    assert forgotten.dialect["pools over"] == "axis -1"  # a weight of zero hid it


class WidensOutput(OnePlus):
    start, added = 1.0, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.dtype is torch.float64 else x.float())


def test_float32_output_of_a_bfloat16_call_is_named() -> None:
    assert finding(WidensOutput, "numerics.half-dtype", "rms") == ("bug", "output-dtype")


class ManyRows(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.cat([y.flatten(0, -2)[: 2**16], 0 * y.flatten(0, -2)[2**16 :]]).reshape(y.shape)


class LongRows(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = x[..., : 2**16]
        mean, var = part.mean(-1, keepdim=True), part.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


class ManyPositions(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = super().forward(x).flatten(2)
        return torch.cat([flat[..., : 2**16], 0 * flat[..., 2**16 :]], -1).reshape(x.shape)


@pytest.mark.parametrize("layer", [ManyRows, LongRows, ManyPositions])
def test_rows_and_positions_beyond_two_to_the_sixteenth(layer: Any) -> None:
    kind = "batch" if issubclass(layer, nn.BatchNorm2d) else "layer"
    assert finding(layer, "layouts.long", kind) == ("bug", "long-input")


class LoopsOverRows(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in x.reshape(-1, x.shape[-1]):
            mean, var = row.mean(), row.var(unbiased=False)
            row = (row - mean) / torch.sqrt(var + self.eps)
            rows.append(row * self.weight + self.bias)
        return torch.stack(rows).reshape(x.shape)


# it was timed, so that a slow machine left out what a fast one did not
def test_a_layer_that_loops_in_python_is_spared_long_inputs() -> None:
    assert finding(LoopsOverRows, "layouts.long", "layer")[0] == "skip"
    assert finding(nn.LayerNorm, "layouts.long", "layer")[0] == "pass"


class OptionsIgnored(nn.Module):
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features, eps, 0.1 if momentum is None else momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class NeverTracks(nn.Module):
    def __init__(self, num_features: int, eps: float = 1e-5, track_running_stats: bool = False) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(num_features, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def test_options_that_are_ignored() -> None:
    assert finding(OptionsIgnored, "values.cumulative", "batch") == ("bug", "momentum-none-ignored")
    assert finding(OptionsIgnored, "values.tracking", "batch") == ("bug", "track-running-stats-ignored")
    assert finding(NeverTracks, "values.tracking", "instance") == ("bug", "track-running-stats-ignored")


class LastBatchesAverage(OptionsIgnored):
    def __init__(self, num_features: int, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, momentum=0.5 if momentum is None else momentum)


def test_a_cumulative_average_that_is_none() -> None:
    assert finding(LastBatchesAverage, "values.cumulative", "batch") == ("bug", "momentum-none")


# the cumulative average of torch's own layer was held to a momentum of 0.1
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d,
        nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.InstanceNorm2d,
        nn.InstanceNorm1d(6, track_running_stats=True),
    ],
    ids=str,
)
def test_options_that_are_obeyed(layer: Any) -> None:
    report = looked_at(layer, only=("values", "state.other-shape", "state.no-grad"))
    assert not report.bugs, report.text()


class ReadsParameters(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.training, self.momentum or 0.0, self.eps
        )


class KeepsWeight(nn.LayerNorm):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.held = [self.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, self.held[0], self.bias, self.eps)


@pytest.mark.parametrize(("layer", "kind"), [(ReadsParameters, "batch"), (KeepsWeight, "layer")])
def test_parameters_that_are_read_past_their_attribute(layer: Any, kind: str) -> None:
    assert finding(layer, "state.parametrized", kind) == ("bug", "reads-past-attribute")


def test_parametrizations_of_torch_s_own_layers_are_obeyed() -> None:
    for layer in (nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm):
        assert finding(layer, "state.parametrized")[0] == "pass"
    assert finding(nn.LayerNorm(6, elementwise_affine=False), "state.parametrized", "layer")[0] == "skip"


def scaled_rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    small = x / largest
    return small * torch.rsqrt(small.pow(2).mean(-1, keepdim=True) + 1e-6 / largest / largest) * weight


def test_squares_that_overflow() -> None:
    assert finding(OnePlus, "numerics.overflow", "rms") == ("note", "squares-overflow")
    assert finding(scaled_rms, "numerics.overflow", "rms")[0] == "pass"


class Inherits(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return standardized(x, (-1,), self.eps) * self.weight + self.bias


# options that torch's class promises, and no word of the author's
def test_an_inherited_option_that_raises_is_not_asked_for() -> None:
    assert finding(Inherits, "values.affine", "layer")[0] == "skip"


# six bugs that blamed the layer
def test_gradients_that_a_file_turns_off_are_no_fault_of_the_layer() -> None:
    from normlab.check.process import SideEffects

    effects = SideEffects()
    with effects.watched():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
    report = examine(subject_of(nn.LayerNorm), quick=True, only=("values", "gradients"), effects=effects)
    assert report.ok, report.text()
    assert [f.cause for f in report.bugs] == ["side-effects"]
    assert "torch.set_grad_enabled" in report.bugs[0].message


class StatisticsInFloat32(nn.Module):
    """RMS norm as T5 writes it: the mean of squares in float32, everything else as it comes."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


# the output is float64 and does not fit float32: a slip was fitted to the rounding of its statistics
def test_statistics_that_are_rounded_to_float32_are_no_slip() -> None:
    report = looked_at(StatisticsInFloat32, "rms")
    assert report.ok, report.text()


class Lazy:
    """A NumPy layer norm whose parameters are made with the first batch."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        self.epsilon, self.parameters = epsilon, {"scaler": None, "intercept": None}

    def forward(self, x: NDArray) -> NDArray:
        if self.parameters["scaler"] is None:
            self.parameters = {"scaler": np.ones(x.shape[1]), "intercept": np.zeros(x.shape[1])}
        self.std = np.sqrt(x.var(axis=-1, keepdims=True) + self.epsilon)
        self.xhat = (x - x.mean(axis=-1, keepdims=True)) / self.std
        return self.parameters["scaler"] * self.xhat + self.parameters["intercept"]

    def backward(self, dy: NDArray) -> NDArray:
        self.gradients = {"scaler": (dy * self.xhat).sum(axis=0), "intercept": dy.sum(axis=0)}
        g = dy * self.parameters["scaler"]
        return (g - g.mean(-1, keepdims=True) - self.xhat * (g * self.xhat).mean(-1, keepdims=True)) / self.std


# "affine: none"
def test_parameters_that_are_made_with_the_first_batch_are_found() -> None:
    report = looked_at(Lazy, "layer")
    assert report.ok, report.text()
    assert report.dialect["affine"] == "weight (6,), bias (6,)"


class MovingNames(nn.Module):
    """Batch norm as d2l writes it: statistics under their own names, of which nothing says how they are divided."""

    def __init__(self, num_features: int, num_dims: int) -> None:
        super().__init__()
        shape = (1, num_features) if num_dims == 2 else (1, num_features, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moving_mean, self.moving_var = torch.zeros(shape), torch.ones(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self.gamma * (x - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5) + self.beta
        axes = (0,) if x.ndim == 2 else (0, 2, 3)
        mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, unbiased=False)
        self.moving_mean = self.blend(self.moving_mean, mean.detach())
        self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return self.gamma * (x - mean) / torch.sqrt(var + 1e-5) + self.beta

    def blend(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return 0.9 * old + 0.1 * new


class MovingMeanReversed(MovingNames):
    def blend(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return super().blend(new, old)


# built for one rank and run on another; under no_grad it evaluates, which was taken for rounding
def test_a_layer_that_is_built_for_a_rank_and_evaluates_without_gradients() -> None:
    report = looked_at(MovingNames, "batch", ("values", "gradients", "layouts", "state.autocast"))
    assert report.ok, report.text()
    assert {f.cause for f in report.bugs} <= {"empty-batch-poisons", "wrong-channels-accepted"}, report.text()


# the biased variance, which nothing forbids here, was called a second slip
def test_a_variance_that_is_free_is_no_second_slip() -> None:
    assert looked_at(MovingMeanReversed, "batch", ("values",)).causes == ["momentum-swapped-mean"]


def spatial_groupnorm_forward(
    x: NDArray, gamma: NDArray, beta: NDArray, G: int, gn_param: dict[str, Any]
) -> tuple[NDArray, Any]:
    rows = x.reshape(len(x) * G, -1)
    std = np.sqrt(rows.var(axis=1, keepdims=True) + gn_param.get("eps", 1e-5))
    xhat = ((rows - rows.mean(axis=1, keepdims=True)) / std).reshape(x.shape)
    return gamma * xhat + beta, (xhat, std, gamma)


def spatial_groupnorm_backward(dout: NDArray, cache: Any) -> dict[str, NDArray]:
    xhat, std, gamma = cache
    g, h = (dout * gamma).reshape(len(std), -1), xhat.reshape(len(std), -1)
    dx = (g - g.mean(axis=1, keepdims=True) - h * (g * h).mean(axis=1, keepdims=True)) / std
    axes = (0, 2, 3)
    return {
        "dx": dx.reshape(dout.shape),
        "dgamma": (dout * xhat).sum(axes, keepdims=True),
        "dbeta": dout.sum(axes, keepdims=True),
    }


# gamma (1, C, 1, 1) was handed as (C,), which broadcasts over the last axis, and the layer was read as channels-last;
# gradients in a dictionary were no gradients
def test_a_group_norm_of_rows_with_parameters_of_full_rank_and_gradients_by_name() -> None:
    report = looked_at((spatial_groupnorm_forward, spatial_groupnorm_backward), "group")
    assert report.ok, report.text()


class Passes:
    """A NumPy batch norm with methods of other names, whose running variance starts from zero as in the assignments."""

    def __init__(self, dim: int) -> None:
        self.layer = CourseMomentum(dim)
        self.gamma, self.beta = np.ones(dim), np.zeros(dim)
        self.running_mean, self.running_var = np.zeros(dim), np.zeros(dim)

    def forward_pass(self, x: NDArray, training: bool = True) -> NDArray:
        for name in ("gamma", "beta", "running_mean", "running_var"):
            setattr(self.layer, name, getattr(self, name))
        y = self.layer.forward(x, training)
        self.running_mean, self.running_var = self.layer.running_mean, self.layer.running_var
        return y

    def backward_pass(self, grad: NDArray) -> NDArray:
        dx = self.layer.backward(grad)
        self.grad_gamma, self.grad_beta = self.layer.dgamma, self.layer.dbeta
        return dx


# "has neither forward nor __call__", "expected a layer class", and a bug where the assignments' start is meant
@pytest.mark.parametrize("layer", [Passes, Passes(6), CourseMomentum(6)])
def test_a_layer_object_of_other_methods_or_built_already(layer: Any) -> None:
    report = looked_at(layer, "batch")
    assert report.ok, report.text()


class LayerNormOperation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        rstd = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + eps)
        xhat = (x - x.mean(-1, keepdim=True)) * rstd
        ctx.save_for_backward(xhat, rstd, weight)
        return weight * xhat + bias

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        xhat, rstd, weight = ctx.saved_tensors
        g, lead = dy * weight, tuple(range(dy.dim() - 1))
        dx = rstd * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))
        return dx, (dy * xhat).sum(lead), dy.sum(lead), None


# it was built as if it were a Module
def test_an_autograd_function_is_a_function_of_tensors() -> None:
    report = looked_at(LayerNormOperation, "layer")
    assert report.ok, report.text()
    assert "gradients.train" in [f.check for f in report.findings if f.status == "pass"]


class Whole(nn.Module):
    """Batch norm in pieces that the faulty layers below replace."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.eps, self.momentum = eps, momentum

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axes = (0, *range(2, x.dim()))
        return x.mean(axes), x.var(axes, unbiased=False)

    def update(self, mean: torch.Tensor, var: torch.Tensor, n: int) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)

    def affine(self, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return weight * y + bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self.moments(x)
            self.update(mean, var, x.numel() // x.shape[1])
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = (x - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + self.eps)
        return self.affine(y, self.weight.reshape(shape), self.bias.reshape(shape))


class UpdatesInEvaluation(Whole):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.update(*self.moments(x), x.numel() // x.shape[1])
        return super().forward(x)


class AffineSwapped(Whole):
    def affine(self, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return bias * y + weight


class SecondMoment(Whole):
    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axes = (0, *range(2, x.dim()))
        return x.mean(axes), (x**2).mean(axes)


class DeviationsAveraged(Whole):
    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = super().moments(x)
        return mean, x.std(tuple(range(2, x.dim())), unbiased=False).mean(0) ** 2 if x.dim() > 2 else var


class DeviationKept(Whole):
    def update(self, mean: torch.Tensor, var: torch.Tensor, n: int) -> None:
        super().update(mean, var.sqrt(), n)


class StatisticsExchanged(Whole):
    def update(self, mean: torch.Tensor, var: torch.Tensor, n: int) -> None:
        super().update(var, mean, n)


# each was unexplained, or one fault was called two: of what follows from another fault, nothing is to be said
@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (UpdatesInEvaluation, "updates-in-eval"),
        (AffineSwapped, "weight-bias-swapped"),
        (SecondMoment, "second-moment-for-variance"),
        (DeviationsAveraged, "deviation-of-parts-averaged"),
        (DeviationKept, "running-var-is-std"),
        (StatisticsExchanged, "running-swapped"),
    ],
)
def test_one_fault_is_named_once(layer: Any, cause: str) -> None:
    report = looked_at(layer, "batch")
    assert set(report.causes) == {cause}, report.text()


class AnyRank(nn.Module):
    """Instance norm that pools all axes after the channels: of (N, C) there are none, and torch pools everything."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return standardized(x, tuple(range(2, x.dim())), self.eps)


# an instance norm was held to inputs without positions
def test_an_instance_norm_is_asked_for_positions() -> None:
    report = looked_at(AnyRank, "instance")
    assert report.ok, report.text()


def overwrites_its_input(x: NDArray, gamma: NDArray, beta: NDArray, ln_param: dict[str, Any]) -> tuple[NDArray, Any]:
    x -= x.mean(axis=1, keepdims=True)
    std = np.sqrt((x**2).mean(axis=1, keepdims=True) + ln_param.get("eps", 1e-5))
    x /= std
    return gamma * x + beta, (x, std.ravel(), gamma)


class OverwritesItsInput(OwnNames):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= x.mean(-1, keepdim=True)
        return self.combine(x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps), self.alpha, self.delta)


# a note about a course's function, though it spoils the notebook's numerical gradients; and a RuntimeError about leaves
@pytest.mark.parametrize("layer", [(overwrites_its_input, layernorm_backward), OverwritesItsInput])
def test_an_input_that_is_overwritten_is_a_fault_of_the_mathematics(layer: Any) -> None:
    report = looked_at(layer, "layer", (*MATHEMATICS, "state.input-kept"))
    assert not report.ok
    assert report.causes == ["changes-input"]


class Accumulates(CourseMomentum):
    dgamma = dbeta = 0.0  # type: ignore[assignment]

    def backward(self, dy: NDArray) -> NDArray:
        dgamma, dbeta = self.dgamma, self.dbeta
        dx = super().backward(dy)
        self.dgamma, self.dbeta = self.dgamma + dgamma, self.dbeta + dbeta
        return dx


# "backward changes the cache"
def test_gradients_that_accumulate_are_called_so() -> None:
    assert finding(Accumulates, "gradients.repeat", "batch") == ("note", "gradients-accumulate")


@pytest.mark.parametrize(
    ("divide", "cause"),
    [
        (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-6), "sum-for-mean"),
        (lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6), "sum-for-mean"),
    ],
)
# "two slips"
def test_an_l2_norm_for_the_root_mean_square(divide: Any, cause: str) -> None:
    class Divides(OnePlus):
        start = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * divide(x)

    assert set(looked_at(Divides, "rms", ("values",)).causes) == {cause}
