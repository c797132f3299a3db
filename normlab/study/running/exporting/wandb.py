"""Runs of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends them later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_run(name: str, config: Mapping[str, Any], study: str, place: Path) -> _Run:
    """A run of the project that is called as the study; several may be open at once."""
    import wandb

    place.mkdir(parents=True, exist_ok=True)
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(
        project=study,
        name=name,
        config=dict(config),
        dir=str(place),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=int(status == "failed"))
