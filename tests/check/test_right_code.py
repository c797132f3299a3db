"""Right code, in the styles that people write, conforms in its mathematics."""

from __future__ import annotations

import pytest

from benchmarks.mutants.fourth.right_layers import RIGHT as FOURTH
from benchmarks.mutants.third.right_layers import RIGHT as THIRD
from benchmarks.mutants.written import Right
from normlab.check.engine import examine


@pytest.mark.parametrize("right", [*THIRD, *FOURTH], ids=lambda r: f"{r.folder.parent.name}-{r.name}")
def test_right_code_has_no_fault_in_its_mathematics(right: Right) -> None:
    if "einops" in right.source():
        pytest.importorskip("einops")
    parts = ("target", "values", "gradients", "layouts", "state.eval-leaves-state")
    report = examine(right.subject(), right.kind, quick=True, only=parts)
    assert report.ok, report.text()
    assert not [f for f in report.findings if f.cause == "fault-of-the-check"], report.text()
