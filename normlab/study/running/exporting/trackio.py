"""Runs of Trackio, in its folder (TRACKIO_DIR): `trackio show --project photos`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_run(name: str, config: Mapping[str, Any], study: str, place: Path) -> _Run:
    """A run of the project that is called as the study."""
    import trackio

    return _Run(
        trackio.init(project=study, name=name, config=dict(config), embed=False, auto_log_gpu=False, auto_log_cpu=False)
    )


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.finish()
