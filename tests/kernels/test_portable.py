"""Every layer runs where the operating system lacks a name that Linux has, and so does a study, but for its locks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("os.register_at_fork", "os.sched_getaffinity", "os.sysconf", "fcntl")

# run by Python itself when it starts, in every process of a study; torch cannot be imported without some of the names
WITHOUT = """
import os, sys
import torch
for full in {names!r}:
    where, _, name = full.rpartition(".")
    if where:
        vars(sys.modules[where]).pop(name, None)
    else:
        sys.modules[name] = None
"""

LAYERS = """
import torch
from normlab import layers, make_norm
from normlab.kernels.runtime import sharing
from normlab import norm_names
from normlab.norms import describe

sharing.num_threads = lambda: 2
sharing.parallel = lambda: (0, 0)  # as where torch has no OpenMP library that is known
x = torch.randn(16, 8, 48, 48).requires_grad_()
made = {name: make_norm(name, 8) for name in norm_names() if describe(name).given is None}
made |= {"LayerNorm": layers.LayerNorm(48), "RMSNorm": layers.RMSNorm(48), "ChannelNorm": layers.ChannelNorm(8)}
for name, layer in made.items():
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), [x])
    assert y.isfinite().all() and gradient.isfinite().all(), name
print(len(made), "layers,", sharing._helpers.count, "helper")
"""

STUDY = """
import sys
from normlab.__main__ import main

small = "--norms bn --model resnet8:width=2 --epochs 1 --limit-train 64 --limit-eval 64 --jobs 1"
sys.argv[1:] = ["compare", "digits", *small.split(), "--out", {out!r}]
main()
"""


def run_without(names: tuple[str, ...], code: str, folder: Path) -> str:
    (folder / "sitecustomize.py").write_text(WITHOUT.format(names=names))
    paths = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Bug: `os.register_at_fork` was called, and `os.sched_getaffinity` counted the cores, on systems that have neither.
@pytest.mark.parametrize(
    "names", [NAMES, *(pytest.param((name,), marks=pytest.mark.slow) for name in NAMES)], ids=" ".join
)
def test_every_layer_runs_without(names: tuple[str, ...], tmp_path: Path) -> None:
    assert run_without(names, LAYERS, tmp_path).endswith("layers, 1 helper\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "fcntl"])
def test_a_study_runs_without(name: str, tmp_path: Path) -> None:
    run_without((name,), STUDY.format(out=str(tmp_path / "study")), tmp_path)
    assert (tmp_path / "study" / "results.json").exists()
