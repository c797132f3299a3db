"""The parts of `python -m benchmarks.gpu`: each yields rows, the most telling first, as time may run out.

With `dry` the same code runs on the CPU, on Triton's interpreter, on sizes that prove nothing but that it runs.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

import normlab
from normlab.bench import layers as rows_of_layers
from normlab.bench.sides import compiled, make_step, our_layer, random_tensor, stock_layer
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


# --- kernels ---------------------------------------------------------------------------------------------------------


def kernels(dry: bool) -> Rows:
    """Each launch of a forward and backward pass by itself: microseconds on the device, whatever the host takes.

    `passes` is how often the tensor could have been read or written meanwhile, at the speed of a copy.
    """
    for work in (work for name in WORKS for work in WORKS[name](dry)):
        row: Row = {"row": work.name, "dtype": work.dtype}
        try:
            with served(dry):
                step = make_step(our_layer(work).to(device_of(dry), getattr(torch, work.dtype)), work, device_of(dry))
                for _ in range(2):
                    step()
                with timing_launches(dry) as rounds:
                    for _ in range(1 if dry else 2 * ROUNDS):
                        rounds.append([])
                        step()
            source = random_tensor(work, 0, device_of(dry))
            target = torch.empty_like(source)
            (copies,) = in_turns([lambda to=target, of=source: to.copy_(of)], ROUNDS, device=device_of(dry))  # type: ignore[misc]
            row["copy_us"] = 1e3 * statistics.median(copies)
            row["launches"] = [
                {"kernel": name, "us": (us := statistics.median(found[i][1]() for found in rounds)),
                 "passes": 2 * us / row["copy_us"]}
                for i, (name, _) in enumerate(rounds[0])
            ]  # fmt: skip
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        yield row


@contextmanager
def timing_launches(dry: bool) -> Iterator[list[list[tuple[str, Callable[[], float]]]]]:
    """Within the block, each launch adds its name and a way to learn its microseconds to the list's last entry."""
    from normlab.kernels.gpu._cut import Ready  # loads Triton, which is to know before whether it interprets

    rounds: list[list[tuple[str, Callable[[], float]]]] = []
    call = Ready.__call__

    def timed(self: Ready, aligned: bool, *tensors: Any) -> None:
        if dry:
            call(self, aligned, *tensors)
            rounds[-1].append((_name_of(self), lambda: 1.0))
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(self, aligned, *tensors)
        end.record()

        def microseconds() -> float:
            end.synchronize()
            return 1e3 * start.elapsed_time(end)

        rounds[-1].append((_name_of(self), microseconds))

    Ready.__call__ = timed  # type: ignore[method-assign]
    try:
        yield rounds
    finally:
        Ready.__call__ = call  # type: ignore[method-assign]


def _name_of(launch: Any) -> str:
    """forward measure+solve, backward apply, total."""
    given = dict(zip(reversed(launch.kernel.arg_names), reversed(launch.numbers), strict=False))
    steps = [step.lower() for step in ("MEASURE", "SOLVE", "APPLY") if given.get(step)]
    return " ".join([launch.kernel.__name__, *(["+".join(steps)] if steps else [])])


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
    for row in rows_of_step(dry):
        try:
            with served(dry):
                (times,) = in_turns([step_of(row, dry)], 1 if dry else ROUNDS, device=device_of(dry))
            row["ms"] = sorted(times)[len(times) // 2]
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        yield row


def rows_of_step(dry: bool) -> list[Row]:
    """What the rows are of, still without a time."""
    sizes: Row = {"model": "resnet8", "batch": 2, "image_size": 8} if dry else {"batch": 128, "image_size": 32}
    hows = ("eager",) if dry else ("eager", "graph", "compiled")
    dtypes = ("float32",) if dry else ("bfloat16", "float32")
    some = product(dtypes, hows, ("stock", "ours"))
    return [{"norm": "bn", "dtype": dtype, "side": side, "how": how, **sizes} for dtype, how, side in some]


def step_of(row: Row, dry: bool) -> Callable[[], Any]:
    """The call of a row, as a graph if that is asked for."""
    sizes = {name: row[name] for name in ("model", "batch", "image_size") if name in row}
    kind = KINDS[row["side"], row["how"] == "compiled"]
    call = make_training_step(kind, row["norm"], "channels_last", device_of(dry), dtype=row["dtype"], **sizes)
    return captured(call) if row["how"] == "graph" else call


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


COMPARE = [sys.executable, "-m", "normlab", "compare", "digits", "--no-report"]
LARGE = ["--norms", SEVEN, "--seeds", "2", "--model", "resnet14", "--device", "cuda", "--per-gpu", "7"]


def compare(dry: bool) -> Rows:
    """`normlab compare`: seven variants, several cells on one GPU; the embedded digits, as there is no network."""
    tiny = ["--norms", "torch-bn", "--epochs", "1", "--limit-train", "32", "--limit-eval", "32", "--model", "resnet8"]
    runs = [[*LARGE, "--epochs", "10"], [*LARGE, "--epochs", "10", "--precision", "bf16", "--compile"]]
    for options in [[*tiny, "--seeds", "1", "--device", "cpu", "--jobs", "1", "--threads", "1"]] if dry else runs:
        command = [*COMPARE, *options]
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


# --- compiling -------------------------------------------------------------------------------------------------------


def start_warming(names: list[str]) -> list[subprocess.Popen[bytes]]:
    """Start processes that have everything compiled that these parts will call; what they compile is kept on disk.

    The tests run beside them, as nobody looks at their times. Compiling would be most of every part's time otherwise.
    """
    names = [name for name in names if name in WARMED]
    count = max(1, (os.cpu_count() or 2) - 4) if names else 0
    command = [sys.executable, "-m", "benchmarks.gpu", "--warm", ",".join(names)]
    quietly = {"cwd": ROOT, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return [subprocess.Popen([*command, f"{i}/{count}"], **quietly) for i in range(count)]  # type: ignore[call-overload]


def warm(names: list[str], share: str) -> None:
    """Call a share of what the parts will call, once each; what fails is met again by the part, which says so."""
    start, count = map(int, share.split("/"))
    jobs = [job for name in names for job in WARMED[name]()]
    for job in jobs[start::count]:
        try:
            job()
        except Exception as error:
            print(f"compiling: {type(error).__name__}: {error}"[:300], flush=True)


def _jobs_of_works(name: str) -> list[Callable[[], None]]:
    sides = (lambda work: compiled(stock_layer(work)), our_layer)
    return [partial(_call, make, work) for make in sides for work in WORKS[name](False)]


def _call(make: Callable[[Work], Any], work: Work) -> None:
    make_step(make(work).to("cuda", getattr(torch, work.dtype)), work, "cuda")()


def _jobs_of_step() -> list[Callable[[], None]]:
    slow_first = sorted(rows_of_step(False), key=lambda row: row["how"] != "compiled")
    return [partial(lambda row: step_of(row, False)(), row) for row in slow_first]


def _jobs_of_compare() -> list[Callable[[], None]]:
    def one_epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [*COMPARE, *LARGE, "--epochs", "1", "--seeds", "1", "--out", folder]
            subprocess.run(command, cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)

    return [one_epoch]


WARMED: dict[str, Callable[[], list[Callable[[], None]]]] = {
    "step": _jobs_of_step,
    "compare": _jobs_of_compare,
    "layers": partial(_jobs_of_works, "layers"),
    "positions": partial(_jobs_of_works, "positions"),
}

STUDY = ("numba", "scipy", "pydantic", "typer", "rich", "safetensors", "PIL")
PARTS = {  # in the order in which they run: the tests beside the compiling, then what is timed
    "tests": Part(tests, 150, ("pytest",)),
    "layers": Part(layers, 120),
    "positions": Part(positions, 60),
    "kernels": Part(kernels, 30),
    "launches": Part(launches, 30),
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
