"""Exactness, memory and the training step: measured on something small, and printed with what is worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normlab.bench import exactness, memory, step
from normlab.bench.work import LAYOUTS, NORMS

TINY: dict[str, Any] = {"model": "resnet8:width=4", "batch": 4, "image_size": 8}


@pytest.mark.parametrize("norm", NORMS)
def test_exactness_has_a_row_per_layout_and_mean(norm: str) -> None:
    rows = exactness.measure(norm, shape=(2, 4, 3, 3))
    assert [(r["layout"], r["mean"], r["size"]) for r in rows] == [(a, *p) for p in exactness.POINTS for a in LAYOUTS]
    for row in rows:
        assert row["worst"] in row["errors"]
        assert row["ratio"] == max(e["ratio"] for e in row["errors"].values())
        assert {"y", "dx", "dweight", "dbias"} <= row["errors"].keys()
    text = list(exactness.lines(rows))
    assert len(text) == 3 + 2 + 1
    assert "worst ratio" in text[-1]


def test_exactness_notices_a_layer_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1e-3

    monkeypatch.setattr(exactness, "make_norm", lambda norm, channels: Off(channels))
    rows = exactness.measure("bn", shape=(2, 4, 3, 3))
    assert all(
        r["errors"]["y"]["ours"] == pytest.approx(1e-3, rel=0.5) for r in rows if r["mean"] < 100 and r["size"] == 1
    )
    assert max(r["ratio"] for r in rows) > 100


@pytest.mark.slow
@pytest.mark.skipif(not memory._CLEAR.exists(), reason="it takes Linux's /proc/self/clear_refs")
def test_memory_counts_what_a_step_holds() -> None:
    found = memory.measure("bn", **TINY)
    assert found is not None
    kinds = ("ours", "recomputed", "eager")
    assert {(v["kind"], v["layout"]) for v in found["variants"]} == {(k, x) for k in kinds for x in LAYOUTS}
    least = {k: min(v["peak_bytes"] for v in found["variants"] if v["kind"] == k) for k in kinds}
    assert found["ratio"] == least["ours"] / least["eager"]
    assert found["recomputed_ratio"] == least["recomputed"] / least["eager"]


@pytest.mark.skipif(not memory._CLEAR.exists(), reason="it takes Linux's /proc/self/clear_refs")
def test_the_peak_is_that_of_the_step() -> None:
    mebibyte = 1 << 20

    def hold() -> None:
        torch.ones(64 * mebibyte // 4)

    assert 56 * mebibyte < memory._peak(hold, "cpu") < 80 * mebibyte


def test_memory_is_told_with_both_ratios() -> None:
    variants = [{"kind": kind, "layout": "channels_first", "peak_bytes": 1 << 20} for kind in ("ours", "eager")]
    text = "".join(memory.lines([{"norm": "bn", **TINY, "variants": variants, "ratio": 1.05, "recomputed_ratio": 0.7}]))
    assert "torch's: 1.05x" in text
    assert text.endswith("0.70x")
    assert "not measured" in "".join(memory.lines([None]))


def test_a_step_has_every_kind_and_layout() -> None:
    found = step.measure("bn", 1, **TINY)
    kinds = {(v["kind"], v["layout"]) for v in found["variants"]}
    assert {("ours", "channels_first"), ("recomputed", "channels_last"), ("eager", "channels_last")} <= kinds
    assert found["ratio"] > 0
    assert "x" in list(step.lines([found]))[-1]


def test_a_model_is_measured_against_itself_fused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = step.measure_model(net, "mine", (2, 3, 8, 8), 1, layouts=("channels_first",))
    assert found["not_fused"] is None
    assert found["ratio"] > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "the model given has been trained"
    assert type(net[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_step_in_another_precision(dtype: str) -> None:
    seen: set[torch.dtype] = set()
    hook = nn.modules.module.register_module_forward_hook(lambda _, __, y: seen.add(y.dtype))
    try:
        found = step.measure("bn", 1, "cpu", False, dtype, **TINY)
    finally:
        hook.remove()
    assert getattr(torch, dtype) in seen
    assert dtype in next(step.lines([found]))


def test_a_slower_step_is_marked() -> None:
    found = step.measure("bn", 1, **TINY)
    assert "(slower)" in "".join(step.lines([{**found, "ratio": 0.9}]))
    assert "(slower)" not in "".join(step.lines([{**found, "ratio": 1.1}]))


def test_both_kinds_of_a_step_start_alike_and_learn_alike() -> None:
    """The times compare the same training."""
    for norm in ("bn", "gn"):
        steps = [step.make_step(kind, norm, "channels_first", "cpu", *TINY.values()) for kind in ("ours", "eager")]
        weights = []
        for one in steps:
            one()
            (net,) = (c.cell_contents for c in one.__closure__ or () if isinstance(c.cell_contents, nn.Module))
            weights.append([p.detach().clone() for p in net.parameters()])
        for a, b in zip(*weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
