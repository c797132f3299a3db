"""Event files of TensorBoard, one folder for each cell: `tensorboard --logdir runs/photos/tensorboard`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_run(name: str, config: Mapping[str, Any], study: str, place: Path) -> _Run:
    """A writer of one cell's events."""
    from torch.utils.tensorboard import SummaryWriter

    folder = place / re.sub(r"[^\w.=,:+-]+", " ", name).strip()
    writer = SummaryWriter(str(folder))
    writer.add_text("settings", "\n".join(f"- {k}: {v}" for k, v in config.items()))
    return _Run(writer)


class _Run:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        self._writer.close()
