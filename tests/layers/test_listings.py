"""The listings of the pages on layers run, as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["convert.md", "layers.md"])
def test_the_listing_runs(page: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code, page, "exec"), {})
