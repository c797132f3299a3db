"""The trainings of docs/conditional.md run, and learn."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "conditional.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), ids=["digits", "sequences"])
def test_a_training_learns(code: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {"__name__": "example"})
    share = re.match(r"(\d+)%", said.getvalue())
    assert share is not None
    assert int(share[1]) >= 80, said.getvalue()
