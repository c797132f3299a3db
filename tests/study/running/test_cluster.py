"""Cells on a Ray cluster: the same cells, whatever happens to a machine in between."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from normlab.study.keeping.store import Store
from normlab.study.running.run import Options, run_study
from normlab.study.spec import make_spec
from tests.study.processes import progress, weights

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'normlab[ray]'")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

from normlab.study.running.cluster import ClusterOptions, RayExecutor  # noqa: E402

SPEC = make_spec(
    {
        "data": "digits",
        "models": "resnet8:width=4",
        "limit_train": 60,
        "limit_eval": 20,
        "batch_sizes": 8,
        "norms": "bn,gn",
        "epochs": 12,
        "lrs": 0.01,
    }
)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for cells, so that they run on machines that may die."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_enable_uv_run_runtime_env", "0")
    opened = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield opened
    ray.shutdown()
    opened.shutdown()


def options(address: str | None = None) -> Options:
    return Options(jobs=2, threads=1, device="cpu", backend="ray", cluster=ClusterOptions(address=address))


def test_a_machine_that_dies_in_the_middle_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    local = tmp_path / "local"
    run_study(SPEC, local, Options(jobs=1, threads=1, device="cpu"))

    doomed = cluster.add_node(num_cpus=2)
    directory = tmp_path / "cluster"
    killed: list[float] = []
    original = RayExecutor.wait

    def wait(self: RayExecutor, emit: Any, seconds: float) -> None:
        original(self, emit, seconds)
        epochs = progress(directory)
        if not killed and len(epochs) == 2 and min(epochs.values()) >= 2 and max(epochs.values()) < 11:
            killed.append(time.monotonic())
            cluster.add_node(num_cpus=2)
            cluster.remove_node(doomed, allow_graceful=False)

    pytest.MonkeyPatch().setattr(RayExecutor, "wait", wait)
    try:
        results = run_study(SPEC, directory, options(cluster.address))
    finally:
        RayExecutor.wait = original  # type: ignore[method-assign]
    assert killed, "the machine outlived the study"
    for cell in results["cells"]:
        assert cell["status"] == "done"
        assert [r["epoch"] for r in cell["epochs"]] == list(range(1, 13))
    expected = weights(local)
    for key, found in weights(directory).items():
        assert all(torch.equal(found[name], expected[key][name]) for name in found)
    with Store(directory, readonly=True) as store:
        assert all(len(store.attempts(c.id)) == 1 for c in store.cells()), "Ray's retries, not ours"
