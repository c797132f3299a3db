"""Keras, Flax and ONNX, where they are installed: their correct layers conform, each in its own dialect."""

from __future__ import annotations

import os
from typing import Any

import pytest

from normlab.check import Report, conformance
from normlab.check.subjects import load, subject_of
from normlab.errors import UsageError


def bugs(report: Report) -> set[str]:
    return {f"{f.check}: {f.cause}" for f in report.bugs}


# what the kit finds about them, reproduced in docs/findings.md: variances by cancellation
CANCELS = {"numerics.surface: cancellation", "numerics.running: running-cancellation"}
KNOWN = {
    "keras BatchNormalization": CANCELS,
    "keras GroupNormalization": CANCELS,
    "onnx GroupNormalization": CANCELS,
    "flax BatchNorm": CANCELS,
    "flax LayerNorm": CANCELS,
    "flax GroupNorm": CANCELS,
    "flax InstanceNorm": CANCELS,
}


@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"])
@pytest.mark.filterwarnings("ignore")
def test_keras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed: its layers were not checked")
    report = conformance(getattr(keras.layers, name), quick=True)
    assert bugs(report) <= KNOWN.get(f"keras {name}", set()), report.text()
    if name == "BatchNormalization":
        assert report.dialect["held to"].startswith("keras")
        assert report.dialect["momentum"] == "0.01 on the new batch, 0.99 on the old"


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm"])
@pytest.mark.filterwarnings("ignore")
def test_flax(name: str) -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: its layers were not checked")
    report = conformance(getattr(nnx, name), quick=True)
    assert bugs(report) <= KNOWN.get(f"flax {name}", set()), report.text()
    if name == "BatchNorm":
        assert report.dialect["held to"].startswith("flax")


@pytest.mark.parametrize(
    "name",
    ["BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"],
)
@pytest.mark.filterwarnings("ignore")
def test_onnx_reference(name: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: its reference was not checked")
    function, backward, called = load(f"onnx:{name}")
    report = conformance(subject_of(function, called, backward), quick=True)
    assert bugs(report) <= KNOWN.get(f"onnx {name}", set()), report.text()


def test_onnx_operators_are_named() -> None:
    with pytest.raises(UsageError, match="expected one of BatchNormalization"):
        load("onnx:Softmax")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_export_to_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: export was not checked")
    from torch import nn

    from normlab.check.engine import examine

    class Odd(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            import torch

            return super().forward(x) * (2 if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling() else 1)

    class Unexportable(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            return super().forward(x) if float(x.sum()) > -1e9 else x

    for layer, status, cause in (
        (nn.BatchNorm2d, "pass", None),
        (Odd, "bug", "export-differs"),
        (Unexportable, "note", "export-fails"),
    ):
        (finding,) = examine(subject_of(layer), "batch", only=["state.export"]).findings
        assert (finding.status, finding.cause) == (status, cause), finding
