"""Memory: training on CIFAR-10 at batch 128 maps the images and stays far below what they take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import resource, sys
import torch
torch.set_num_threads(1)
from normlab.study.training.cell import Training, shuffled, split_batches
from normlab.study.source import open_data
from normlab.study.spec import make_spec

spec = make_spec({"data": sys.argv[1], "norms": "bn,in,bin,ln,gn,none,torch-bn", "epochs": 1, "batch_sizes": 128})
dataset = open_data(spec.data_choice())
batches = split_batches(shuffled(len(dataset.train), 0, 1), 128)
for cell in spec.cells(len(dataset.train)):
    training = Training(cell, dataset)
    for index in batches[:2]:
        training.step(index, 1)
training.evaluate(type(dataset.val)(dataset.val.images[:1000], dataset.val.labels[:1000]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.data
@pytest.mark.slow
def test_peak_memory_on_cifar10_stays_under_three_gigabytes() -> None:
    folder = os.environ.get("NORMLAB_TEST_DATA")
    if not folder or not (Path(folder) / "cifar10").is_dir():
        pytest.skip("NORMLAB_TEST_DATA names no folder with cifar10/ in it")
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(Path(folder) / "cifar10")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout.split()[-1])
    assert kilobytes < 3 * 1024**2
