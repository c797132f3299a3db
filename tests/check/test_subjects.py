"""Adapters: how targets are found, built, called and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.mutants import correct
from normlab.check import conformance
from normlab.check.oracle import Recipe
from normlab.check.subjects import TargetFailure, Unsupported, load, subject_of
from normlab.check.subjects.base import checked_output, guarded, kind_from_name
from normlab.errors import UsageError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BatchNorm2d", "batch"),
        ("bn", "batch"),
        ("MyBN", "batch"),
        ("spatial_batchnorm_forward", "batch"),
        ("LayerNorm", "layer"),
        ("layernorm_forward", "layer"),
        ("LN", "layer"),
        ("InstanceNorm1d", "instance"),
        ("spatial_groupnorm_forward", "group"),
        ("GroupNormalization", "group"),
        ("LlamaRMSNorm", "rms"),
        ("BatchInstanceNorm", "batch-instance"),
        ("BIN", "batch-instance"),
        ("LayerNormViaGroupNorm", "layer"),
        ("Whatever", None),
        ("Linear", None),
        ("Binary", None),
    ],
)
def test_names_tell_the_kind(name: str, kind: str | None) -> None:
    assert kind_from_name(name) == kind


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm2d(6), "batch"),
        (nn.InstanceNorm2d(6, affine=True), "instance"),
        (nn.GroupNorm(3, 6), "group"),
        (nn.GroupNorm(1, 6), "layer"),
        (nn.LayerNorm(6), "layer"),
        (nn.RMSNorm(6, eps=1e-6), "rms"),
    ],
    ids=str,
)
def test_without_a_name_the_kind_is_told_by_what_is_pooled(layer: nn.Module, kind: str) -> None:
    class Anonymous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer
            if hasattr(layer, "num_groups"):
                self.num_groups = layer.num_groups

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    report = conformance(Anonymous(), quick=True)
    assert report.dialect["norm"] == f"{kind} (told by what it pools)"
    allowed = {"layouts.channels-last-mean"} if isinstance(layer, nn.GroupNorm) else set()
    assert {f.check for f in report.bugs} <= allowed, report.text()


def test_a_layer_that_pools_like_no_norm_wants_to_be_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean()

    with pytest.raises(UsageError, match="name it with --as, one of batch, layer"):
        conformance(Odd())


@pytest.mark.parametrize(("kind", "dialect"), [("bach", "auto"), (None, "tensorflow")])
def test_unknown_names_are_usage_errors(kind: str | None, dialect: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        conformance(nn.BatchNorm2d, kind=kind, dialect=dialect)


class CourseBatchNorm:
    """A layer object, as courses build networks from."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.9) -> None:
        self.gamma, self.beta = np.ones(num_features), np.zeros(num_features)
        self.running_mean, self.running_var = np.zeros(num_features), np.ones(num_features)
        self.eps, self.momentum = eps, momentum

    def forward(self, x: np.ndarray, training: bool = True) -> np.ndarray:
        self.training = training
        if training:
            mean, var = x.mean(0), x.var(0)
            m = self.momentum
            self.running_mean = m * self.running_mean + (1 - m) * mean
            self.running_var = m * self.running_var + (1 - m) * var
        else:
            mean, var = self.running_mean, self.running_var
        self.std = np.sqrt(var + self.eps)
        self.xhat = (x - mean) / self.std
        return self.gamma * self.xhat + self.beta

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.dgamma, self.dbeta = (dy * self.xhat).sum(0), dy.sum(0)
        g = dy * self.gamma
        if not self.training:
            return g / self.std
        return (g - g.mean(0) - self.xhat * (g * self.xhat).mean(0)) / self.std


class CourseBatchNormSum(CourseBatchNorm):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = super().backward(dy)
        self.dgamma = self.dgamma / len(dy)
        return dx


class CourseBatchNormForgets(CourseBatchNorm):
    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = super().backward(dy)
        del self.dgamma
        return dx


def test_a_numpy_layer_object() -> None:
    report = conformance(CourseBatchNorm, quick=True)
    assert report.ok, report.text()
    assert report.form == "NumPy layer object"
    assert report.dialect["held to"].startswith("teaching")
    assert conformance(CourseBatchNormSum, quick=True).cause == "dweight-mean"
    told = conformance(CourseBatchNormForgets, quick=True).bugs[0].message
    assert "left no gradient of gamma" in told


def test_gamma_of_four_dimensions() -> None:
    """Some assignments keep gamma as (1, C, 1, 1)."""

    def spatial_groupnorm_forward(x: Any, gamma: Any, beta: Any, G: int, gn_param: Any) -> Any:
        n, c = x.shape[:2]
        assert c % G == 0
        grouped = x.reshape(n, G, -1)
        std = np.sqrt(grouped.var(2, keepdims=True) + gn_param.get("eps", 1e-5))
        xhat = ((grouped - grouped.mean(2, keepdims=True)) / std).reshape(x.shape)
        assert gamma.shape == (1, c, 1, 1)
        return gamma * xhat + beta, None

    report = conformance(spatial_groupnorm_forward, quick=True)
    assert report.ok, report.text()


def test_a_plain_numpy_function_without_backward() -> None:
    def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-6) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    report = conformance(rms_norm, quick=True)
    assert report.ok, report.text()
    assert any(f.message == "the target has no backward pass" for f in report.findings)


def test_a_pair_is_found_by_its_name_or_named(tmp_path: Path) -> None:
    import benchmarks.mutants.originals as originals

    source = Path(originals.__file__).with_name("batch_numpy.py")
    for target in (f"{source}:batchnorm_forward", f"{source}:batchnorm_forward,batchnorm_backward"):
        forward, backward, name = load(target)
        assert backward.__name__ == "batchnorm_backward"
        assert subject_of(forward, name, backward).has_backward
    assert conformance((forward, backward), kind="batch", quick=True).ok


def test_wrong_gradients_of_a_pair_are_told() -> None:
    import benchmarks.mutants.originals.batch_numpy as pair

    def no_tuple(dout: Any, cache: Any) -> Any:
        return pair.batchnorm_backward(dout, cache)[0]

    def wrong_size(dout: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = pair.batchnorm_backward(dout, cache)
        return dx, dgamma[:1], dbeta

    for backward, words in ((no_tuple, "expected a tuple (dx, dweight, dbias)"), (wrong_size, "expected 6 values")):
        report = conformance((pair.batchnorm_forward, backward), kind="batch", quick=True)
        assert words in report.bugs[0].message


def test_a_builder_and_an_instance_keep_their_own_sizes() -> None:
    def build() -> nn.Module:
        return nn.GroupNorm(4, 8)

    for target in (build, nn.GroupNorm(4, 8)):
        subject = subject_of(target)
        assert (subject.options.channels, subject.options.groups) == (8, 4)
        with pytest.raises(Unsupported):
            subject.fresh(channels=12)


def test_an_instance_is_left_as_it_is() -> None:
    layer = nn.BatchNorm2d(6)
    conformance(layer, quick=True)
    assert int(layer.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert layer.weight.dtype is torch.float32


def test_answers_are_checked_and_failures_are_wrapped() -> None:
    with pytest.raises(TargetFailure, match="real numbers"):
        checked_output(np.array(["a"]), (1,))
    with pytest.raises(TargetFailure, match="returned None"):
        checked_output(None, (1,))
    with pytest.raises(TargetFailure, match="ZeroDivisionError"):
        guarded(lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        guarded(_interrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_subjects_of_subjects_are_themselves() -> None:
    subject = correct("layer_torch")
    assert subject_of(subject) is subject
    assert Recipe("layer", 6).group_count == 1


class PassesOn(nn.GroupNorm):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)


# "missing 1 required positional argument: 'num_features'", and its mathematics were said to be wrong
def test_a_class_that_passes_its_arguments_on_is_built_as_its_base() -> None:
    subject = subject_of(PassesOn, "PassesOn")
    assert (subject.options.channels, subject.options.groups) == (6, 3)
    assert "eps" in subject.settable
