"""The documentation's listing is the code, and its examples run."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

from normlab.scratch.layers import batchnorm_backward

PAGE = Path(__file__).parents[2] / "docs" / "scratch.md"


def test_the_listing_is_the_code() -> None:
    assert f"```python\n{inspect.getsource(batchnorm_backward)}```" in PAGE.read_text()


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    training, check = (next(b for b in blocks if word in b) for word in ("solver.train()", "rel_error"))
    names: dict[str, Any] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(training + check, names)
    accuracy, *errors = map(float, out.getvalue().split())
    assert accuracy > 0.85
    assert max(errors) < 1e-6
