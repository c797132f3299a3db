"""The examples of docs/watching.md run; those that need a package of somebody else's, where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "watching.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
@pytest.mark.filterwarnings("ignore")
def test_an_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pytorch_lightning", "accelerate") if "# needs" in code else ():
        if package in code or (package == "accelerate" and "transformers" in code):
            pytest.importorskip(package, reason=f"{package} is not installed: the example was not run")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("range(100)", "range(51)"), {"__name__": "example"})
