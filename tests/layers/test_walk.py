"""The walk of x through the files, as docs/architecture.md describes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import normlab

ROOT = Path(__file__).parents[2]


def test_x_walks_as_it_is_written() -> None:
    """No file twice, and those that Python runs in this order; the compiled ones come last."""
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## The walk of x")[2].partition("\n## ")[0]
    written = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert len(written) == len(set(written)) > 8
    assert all((ROOT / "normlab" / name).is_file() for name in written)
    layer, x = normlab.make_norm("bn", 4), torch.randn(9, 4, 5, 5, requires_grad=True)
    layer(x)  # what is prepared once is no part of it
    walked: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "normlab"):
            walked[path.relative_to(ROOT / "normlab").as_posix()] = None

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        layer(x)
    finally:
        sys.setprofile(before)
    python = [name for name in written if not Path(name).name.startswith("_")]
    assert python[-1] == "kernels/cpu/planes.py"
    assert [name for name in walked if name in written] == python
