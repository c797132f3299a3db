"""The conformance kit: find the bug in anybody's normalization layer, and say what it is.

    from normlab.check import conformance
    print(conformance(MyBatchNorm).text())

`enrol` makes the same checks pytest tests; `normlab check` runs them contained in a process of their own.
"""

from __future__ import annotations

from typing import Any

from normlab.check.report import Finding, Report

__all__ = ["Finding", "Report", "conformance", "enrol"]


def conformance(
    layer: Any,
    *,
    kind: str | None = None,
    dialect: str = "auto",
    quick: bool = False,
    backward: Any = None,
    strict: bool = False,
) -> Report:
    """Check a layer in this process and report what was found.

    `layer` is a torch Module class or instance, a function, a NumPy (forward, backward) pair, a Keras or Flax
    layer, or a function that builds one of these. `kind` is batch, layer, instance, group, batch-instance or rms
    (default: read from the name, then from what the layer pools over); `dialect` torch, keras, onnx, flax, teaching or
    auto; `quick` leaves out what takes seconds. The report's `ok` is about the mathematics alone; `strict` demands the
    engineering and the numerics too. Raises UsageError for what is no layer.
    """
    from normlab.check.engine import examine, failure
    from normlab.check.subjects import TargetFailure, subject_of

    try:
        subject = subject_of(layer, backward=backward, kind=kind)
    except TargetFailure as e:
        name = getattr(layer, "__name__", type(layer).__name__)
        return Report(name, findings=[failure("target.load", e)])
    return examine(subject, kind, dialect, quick, strict=strict)


class enrol:
    """Enrol a layer: `test_my_norm = normlab.check.enrol(MyNorm, kind="batch")` makes one pytest test per check."""

    def __init__(
        self, layer: Any, *, kind: str | None = None, dialect: str = "auto", quick: bool = True, backward: Any = None
    ) -> None:
        self.layer, self.kind, self.dialect, self.quick, self.backward = layer, kind, dialect, quick, backward
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """The report; the checks run when it is first asked for."""
        if self._report is None:
            self._report = conformance(
                self.layer, kind=self.kind, dialect=self.dialect, quick=self.quick, backward=self.backward
            )
        return self._report
