"""The same numbers from any thread, from several at once, after a fork, and with any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from normlab.kernels.runtime import sharing
from normlab.kernels.runtime.control import OVER, PART
from tests.layers.parity import NORMS, SHAPES, Case, make_input, our_layer, run, threads

ROOT = Path(__file__).parents[2]
# large enough to be shared among threads, in several blocks of samples and in passes
SHAPES_SHARED = ((64, 16, 16, 16), (2, 16, 96, 96), (1, 16, 128, 128))


def answer(norm: str, shape: tuple[int, ...], layout: str, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = make_input(Case(norm, shape, layout=layout), generator)
    result = run(our_layer(Case(norm, shape)), x, torch.randn(shape, generator=generator))
    return [result.y, *result.grads.values(), *result.running.values()]


@pytest.mark.covering
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("shape", SHAPES_SHARED)
@pytest.mark.parametrize("norm", NORMS)
def test_number_of_threads(norm: str, shape: tuple[int, ...], layout: str) -> None:
    with threads(1):
        want = answer(norm, shape, layout)
    for count in (2, 3):
        with threads(count):
            for got, expected in zip(answer(norm, shape, layout), want, strict=True):
                assert torch.equal(got, expected), f"{count} threads"


@pytest.mark.parametrize("norm", NORMS)
def test_many_python_threads(norm: str) -> None:
    jobs = [(norm, SHAPES_SHARED[i % 3], ("first", "last")[i // 2 % 2], i) for i in range(16)]
    with threads(2):
        want = [answer(*job) for job in jobs]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda job: answer(*job), jobs))
    for got, expected in zip(found, want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_same_twice() -> None:
    for norm in NORMS:
        first, second = (answer(norm, SHAPES_SHARED[0], "last") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


OWN = """
import torch
from normlab.layers import ChannelNorm, LayerNorm
from normlab.kernels.runtime import sharing
from tests.kernels.test_threads import SHAPES_SHARED, answer

def position(layer):
    x = torch.randn(64, 32, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], x.detach())]

jobs = [lambda: answer("bn", SHAPES_SHARED[0], "first"), lambda: answer("gn", SHAPES_SHARED[0], "last")]
jobs += [lambda layer=layer: position(layer) for layer in (LayerNorm(16), ChannelNorm(32))]
torch.set_num_threads(1)
want = [job() for job in jobs]
torch.set_num_threads(2)
sharing.parallel = lambda: (0, 0)
found = [job() for _ in range(3) for job in jobs]
print(sharing._helpers.count > 0, all(torch.equal(a, b) for f, w in zip(found, 3 * want) for a, b in zip(f, w)))
"""


def test_without_the_threads_of_torch() -> None:
    """Bug: the counters of our own helpers stayed, and statistics per position never took a unit of the second job."""
    done = subprocess.run(
        [sys.executable, "-c", OWN], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout.strip() == "True True", done.stdout + done.stderr


# Bug: an interrupt while helpers were being called left those that had come waiting for ever, awake.
def test_an_interrupted_call_lets_its_helpers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def interrupted(count: int, function: Any, *args: Any) -> None:
        called.append((function, args))
        raise KeyboardInterrupt

    monkeypatch.setattr(sharing, "_call_helpers", interrupted)
    monkeypatch.setattr(sharing, "parallel", lambda: (0, 0))
    with threads(2), pytest.raises(KeyboardInterrupt):
        answer("bn", SHAPES_SHARED[0], "first")
    ((join, (job, counters, control)),) = called
    assert counters[control + PART] == OVER
    join(job, counters, control)  # and who comes only now leaves at once


FORK = """
import os, sys
import torch
from tests.layers.parity import NORMS
from tests.kernels.test_threads import SHAPES_SHARED, answer

torch.set_num_threads(2)
jobs = [(norm, SHAPES_SHARED[0], layout) for norm in NORMS for layout in ("first", "last")]
want = [answer(*job) for job in jobs]
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # torch's own pool does not survive a fork
        torch.get_num_threads = lambda: 2  # ours does
        same = all(torch.equal(a, b) for job, w in zip(jobs, want) for a, b in zip(answer(*job), w))
        os._exit(0 if same else 9)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
again = all(torch.equal(a, b) for job, w in zip(jobs, want) for a, b in zip(answer(*job), w))
print("children", codes, "parent", again)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system has no fork")
def test_after_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout.strip() == "children [0, 0] parent True", done.stdout + done.stderr


def test_data_loader_workers() -> None:
    """A layer inside a worker process that was forked after the kernels ran."""
    from torch.utils.data import DataLoader

    layer = our_layer(Case("gn")).requires_grad_(False)
    x = torch.randn(8, *SHAPES[4][1:])
    want = layer(x)
    loader = DataLoader(list(x), batch_size=4, num_workers=1, collate_fn=lambda rows: layer(torch.stack(rows)))
    torch.testing.assert_close(torch.cat(list(loader)), want)
