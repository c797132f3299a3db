"""Right code, in the styles that people write, conforms in its mathematics."""

from __future__ import annotations

import pytest

from benchmarks.mutants.third.right_layers import RIGHT, Right
from benchmarks.mutants.third.run import report_of


@pytest.mark.parametrize("right", RIGHT, ids=lambda r: r.name)
def test_right_code_has_no_fault_in_its_mathematics(right: Right) -> None:
    if "einops" in right.source():
        pytest.importorskip("einops")
    report = report_of(right, only=("target", "values", "gradients", "layouts", "state.eval-leaves-state"))
    assert report.ok, report.text()
    assert not [f for f in report.findings if f.cause == "fault-of-the-check"], report.text()
