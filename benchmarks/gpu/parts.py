"""The parts of `python -m benchmarks.gpu`: each yields rows, the most telling first, as time may run out.

With `dry` the same code runs on the CPU, on Triton's interpreter, on sizes that prove nothing but that it runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

import normlab
from normlab.bench import layers as rows_of_layers
from normlab.bench.sides import compiled, make_step, our_layer, stock_layer
from normlab.bench.step import make_step as make_training_step
from normlab.bench.timing import in_turns
from normlab.bench.work import NORMS, POSITION_NORMS, TINY, Work

Row = dict[str, Any]
Rows = Iterator[Row]
ROOT = Path(__file__).parents[2]
ROUNDS = 5
SEVEN = "bn,in,bin,ln,gn,rms,torch-bn"


@dataclass(frozen=True)
class Part:
    """What is measured, for how many seconds at most, and the modules that it needs beside torch and NumPy."""

    rows: Callable[[bool], Rows]
    seconds: int
    needs: tuple[str, ...] = ()


def device_of(dry: bool) -> str:
    return "cpu" if dry else "cuda"


def served(dry: bool) -> Any:
    """CUDA tensors are served by Triton anyway; CPU tensors, by its interpreter, where that is asked for."""
    return normlab.use_backend("triton_gpu") if dry else nullcontext()


# --- layers ----------------------------------------------------------------------------------------------------------


def works_of_layers(dry: bool) -> list[Work]:
    """Tensors above 64 MB in either precision: more than the caches hold."""
    shape = (2, 8, 4, 4) if dry else (48, 64, 112, 112)
    layouts = (("float32", "channels_first"), ("bfloat16", "channels_last"), ("float32", "channels_last"))
    forms: tuple[tuple[bool, str | None], ...] = ((True, "relu"), (False, None), (False, "relu"))
    some = product(forms[:1], layouts[:2], ("bn", "gn")) if dry else product(forms, layouts, NORMS)
    return [Work(norm, shape, layout, residual, act, dtype) for (residual, act), (dtype, layout), norm in some]


def works_of_positions(dry: bool) -> list[Work]:
    rows, images = ((6, 40), (2, 8, 3, 3)) if dry else ((32768, 1024), (48, 96, 96, 96))
    found = [
        Work(norm, images if norm == "channelnorm" else rows, dtype=dtype)
        for dtype, norm in product(("float32", "bfloat16"), POSITION_NORMS)
    ]
    return found if dry else [*found, *(Work(norm, (8192, 8192), dtype="bfloat16") for norm in POSITION_NORMS[:2])]


WORKS = {"layers": works_of_layers, "positions": works_of_positions}


def rows_of_works(name: str, dry: bool) -> Rows:
    """Ours, torch's eager and compiled, and the floor: the bytes that must move at the speed of a copy."""
    if not dry:
        _warm_together(name)
    for work in WORKS[name](dry):
        try:
            with served(dry):
                yield rows_of_layers.measure(work, 1 if dry else ROUNDS, device_of(dry), with_compiled=not dry)
        except Exception as error:  # of one row: the others go on
            yield {"row": work.name, "dtype": work.dtype, "error": f"{type(error).__name__}: {error}"[:500]}


def layers(dry: bool) -> Rows:
    yield from rows_of_works("layers", dry)


def positions(dry: bool) -> Rows:
    yield from rows_of_works("positions", dry)


def _warm_together(name: str) -> None:
    """Have all kernels of a part compiled, by many processes at once; what they compile is kept on disk."""
    count = max(1, (os.cpu_count() or 2) // 2)
    command = [sys.executable, "-m", "benchmarks.gpu", "--warm", name]
    helpers = [subprocess.Popen([*command, f"{i}/{count}"], cwd=ROOT, stderr=subprocess.DEVNULL) for i in range(count)]
    for helper in helpers:
        helper.wait()


def warm(name: str, share: str) -> None:
    """Call both sides of a share of a part's rows once."""
    start, count = map(int, share.split("/"))
    for work in WORKS[name](False)[start::count]:
        for make in (our_layer, lambda work: compiled(stock_layer(work))):
            try:
                make_step(make(work).to("cuda", getattr(torch, work.dtype)), work, "cuda")()
            except Exception as error:  # the measuring process meets it again, and says so
                print(f"{work.name}: {error}", flush=True)


# --- launches --------------------------------------------------------------------------------------------------------


def launches(dry: bool) -> Rows:
    """Microseconds of the host for a call with next to no work, forward and with backward."""
    calls = 1 if dry else 100
    for norm in ("bn", "channelnorm") if dry else (*NORMS, *POSITION_NORMS):
        work = Work(norm, (8, 64) if norm in ("layernorm", "rmsnorm") else TINY)
        row: Row = {"norm": norm, "calls": calls}
        for side, layer in (("ours", our_layer(work)), ("eager", stock_layer(work))):
            placed = layer.to(device_of(dry))
            x = torch.randn(work.shape, device=device_of(dry))
            both = make_step(placed, work, device_of(dry))
            with served(dry):
                with torch.no_grad():
                    row[f"{side}_forward_us"] = _host_us(lambda layer=placed, x=x: layer(x), calls)  # type: ignore[misc]
                row[f"{side}_both_us"] = _host_us(both, calls)
        yield row


def _host_us(call: Callable[[], Any], calls: int) -> float:
    """The shortest of three rows of calls; the device is waited for between them, and not timed."""
    figures = []
    for _ in range(1 if calls == 1 else 4):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        figures.append((time.perf_counter() - start) / calls)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return 1e6 * min(figures)


# --- a training step -------------------------------------------------------------------------------------------------


def step(dry: bool) -> Rows:
    """ResNet-14 with batch norm: {stock, ours} x {eager, CUDA graph, compiled}, channels-last, one row each."""
    sizes: Row = {"model": "resnet8", "batch": 2, "image_size": 8} if dry else {"batch": 128, "image_size": 32}
    hows = ("eager",) if dry else ("eager", "graph", "compiled")
    dtypes = ("float32",) if dry else ("bfloat16", "float32")
    for how, dtype, side in product(hows, dtypes, ("stock", "ours")):
        row: Row = {"norm": "bn", "dtype": dtype, "side": side, "how": how, **sizes}
        try:
            with served(dry):
                call = make_training_step(
                    KINDS[side, how == "compiled"], "bn", "channels_last", device_of(dry), dtype=dtype, **sizes
                )
                if how == "graph":
                    call = captured(call)
                (times,) = in_turns([call], 1 if dry else ROUNDS, device=device_of(dry))
            row["ms"] = sorted(times)[len(times) // 2]
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        yield row


# of a step: by side, and whether torch.compile takes it
KINDS = {
    ("stock", False): "eager", ("stock", True): "compiled", ("ours", False): "ours", ("ours", True): "compiled ours",
}  # fmt: skip


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """The step as a CUDA graph, to be replayed."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# --- a study, and the tests ------------------------------------------------------------------------------------------


def compare(dry: bool) -> Rows:
    """`normlab compare`: seven variants, several cells on one GPU; the embedded digits, as there is no network."""
    large = ["--norms", SEVEN, "--seeds", "2", "--model", "resnet14", "--device", "cuda", "--per-gpu", "7"]
    tiny = ["--norms", "torch-bn", "--epochs", "1", "--limit-train", "32", "--limit-eval", "32", "--model", "resnet8"]
    runs = [[*large, "--epochs", "10"], [*large, "--epochs", "10", "--precision", "bf16", "--compile"]]
    for options in [[*tiny, "--seeds", "1", "--device", "cpu", "--jobs", "1", "--threads", "1"]] if dry else runs:
        command = [sys.executable, "-m", "normlab", "compare", "digits", "--no-report", *options]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            done = subprocess.run(
                [*command, "--out", folder], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            row: Row = {"command": " ".join(command[2:]), "seconds": time.perf_counter() - start}
            if done.returncode:
                row["error"] = (done.stderr or done.stdout)[-800:]
            else:
                row["printed"] = done.stdout[-4000:]
        yield row


_OUTCOME = re.compile(r"(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)|(PASSED|FAILED|SKIPPED|ERROR) (tests/\S+::.+)")


def tests(dry: bool) -> Rows:
    """tests/gpu: an outcome for each; without a device they are skipped."""
    # (the suite's conftest compiles for the CPU, and what versions to come warn of is no failure here)
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--noconftest"]
    command += ["-o", "filterwarnings=default", "tests/gpu"]
    if dry:
        command += ["-k", "served_by_triton"]
    elif find_spec("xdist"):
        command += ["-n", "8"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        tail: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-60:], line.rstrip()]
            found = _OUTCOME.search(line)
            if found and not line.startswith(("FAILED", "ERROR", "SKIPPED")):
                test, outcome = (found[1], found[2]) if found[1] else (found[4], found[3])
                yield {"test": test.strip(), "outcome": outcome.lower()}
    if process.returncode not in (0, 5):
        yield {"error": "\n".join(tail)[-4000:]}


STUDY = ("numba", "scipy", "pydantic", "typer", "rich", "safetensors", "PIL")
PARTS = {
    "layers": Part(layers, 120),
    "positions": Part(positions, 60),
    "launches": Part(launches, 30),
    "tests": Part(tests, 150, ("pytest",)),
    "step": Part(step, 120),
    "compare": Part(compare, 110, STUDY),
}


def main(name: str, to: Path, dry: bool) -> None:
    """Run a part in this process: a line of JSON for each row, written as soon as it is there, and one to read."""
    with to.open("a") as file:
        for row in PARTS[name].rows(dry):
            file.write(json.dumps(row) + "\n")
            file.flush()
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in _LONG}
            print(f"  {name}: {', '.join(f'{k} {v}' for k, v in shown.items())[:200]}", flush=True)


_LONG = ("printed", "bytes_moved", "tensor_bytes", "count", "layout_name")
