"""Runs of MLflow, in files beside the study unless MLFLOW_TRACKING_URI says otherwise.

Look at them with `mlflow ui --backend-store-uri runs/photos/mlflow`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FINISHED"}


def open_run(name: str, config: Mapping[str, Any], study: str, place: Path) -> _Run:
    """A run of the experiment that is called as the study; no run becomes the active one of this process."""
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
    uri = os.environ.get("MLFLOW_TRACKING_URI") or place.resolve().as_uri()
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(study)
    experiment = client.create_experiment(study) if found is None else found.experiment_id
    run = client.create_run(experiment, run_name=name).info.run_id
    for key, value in config.items():
        client.log_param(run, key, value)
    return _Run(client, run)


class _Run:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run, _STATUS.get(status, "KILLED"))
