"""pytest plug-in: a module-level `normlab.check.enrol(...)` becomes one test per group of checks.

Importing this module costs nothing: torch and the kit are loaded when an enrolled layer's first test runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """Collect enrolled layers; everything else is pytest's own business."""
    kit = sys.modules.get("normlab.check")  # a module that enrols a layer has imported it
    if kit is None or not isinstance(obj, kit.enrol):
        return None
    return Enrolled.from_parent(collector, name=name, enrolment=obj)


class Enrolled(pytest.Collector):
    """An enrolled layer: a test for each group of checks."""

    def __init__(self, *, enrolment: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.enrolment = enrolment

    def collect(self) -> Iterator[pytest.Item]:
        from normlab.check.report import GROUPS

        for group in GROUPS:
            if group != "speed":
                yield Group.from_parent(self, name=group, enrolment=self.enrolment)


class Group(pytest.Item):
    """One group of checks of one layer; it fails with the report's words."""

    def __init__(self, *, enrolment: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.enrolment = enrolment

    def runtest(self) -> None:
        from normlab.check.report import Report

        report = self.enrolment.report
        mine = [f for f in report.findings if f.check.split(".")[0] == self.name]
        bugs = [f for f in mine if f.status == "bug"]
        if bugs:
            raise Nonconforming(Report(report.target, report.form, report.dialect, bugs).text())
        if self.name != "target" and not mine:
            pytest.skip("the layer could not be probed")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, Nonconforming):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"{self.parent.name if self.parent else ''}[{self.name}]"


class Nonconforming(Exception):
    """The enrolled layer has a bug."""
