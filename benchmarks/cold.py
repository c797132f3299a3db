"""What a fresh installation waits for: seconds to the first outputs, with nothing compiled and with all of it.

python -m benchmarks.cold [--demo] [--wheel]

Each part is a process of its own with an empty folder for compiled code (NUMBA_CACHE_DIR), and then another one with
what the first has left there. The kernels that the process itself compiled are listed below; a second process compiles
others at the same time (`normlab.kernels.runtime.beside`), and those are only loaded. `--demo` adds what the cells of
`make demo` compile: the difference between a cold and a warm comparison of one epoch. `--wheel` adds a column with an
empty folder and the compiled kernels of a wheel, in build/objects, where `make wheel` leaves them. Seconds of processor
time are those of all processes of a part: other work on the machine does not count there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normlab.kernels.runtime.objects import CONTENTS

WANTED = {  # from source, from a wheel
    "first output of a layer": (5.0, 1.0),
    "first training step of resnet14 with bn, gn and ln": (15.0, 2.0),
    "compiling of a demo": (15.0, 0.0),
}
_OBJECTS = Path(__file__).parents[1] / "build" / "objects"
_DEMO = ["compare", "digits", "--epochs", "1", "--seeds", "1"]


def main(args: list[str] | None = None) -> None:
    """Measure, and print the tables; or, as a process of its own, one part as JSON."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--part"]:
        print(json.dumps(_PARTS[args[1]](args[2] == "cold")))
        return
    columns = ["cold", "warm"]
    if "--wheel" in args:
        columns.append("wheel")
        if not (_OBJECTS / CONTENTS).exists():
            sys.exit(f"--wheel: {_OBJECTS} has no compiled kernels; make them with: python -m wheels.objects")
    from normlab.bench.machine import describe, line

    print(line(describe("cpu")))
    print(f"{'seconds':60s}" + "".join(f" {name:>8s}" for name in (*columns, "wanted")))
    kernels: list[dict[str, Any]] = []
    for part in _PARTS:
        found = _each(columns, lambda column, folder, part=part: _measure(part, column, folder))
        for name in found[0]["seconds"]:
            _print(name, [one["seconds"][name] for one in found])
        kernels += found[0]["kernels"]
    if "--demo" in args:
        first, warm, *rest = _each(columns, _demo)
        _print("compiling of a demo", [seconds - warm for seconds in (first, warm, *rest)])
    print("compiled in the process that waits (functions of all its parts):")
    for kernel in kernels:
        print(
            f"  {kernel['seconds']:6.2f} s  {kernel['functions']:3d} functions, "
            f"LLVM {kernel['llvm']:5.2f} s  {kernel['name']}"
        )


def _each(columns: list[str], measure: Callable[[str, str], Any]) -> list[Any]:
    """What is measured for each column; the first two share a folder for what they compile."""
    with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as empty:
        return [measure(column, empty if column == "wheel" else shared) for column in columns]


def _print(name: str, seconds: list[float]) -> None:
    wanted = ", ".join(f"{most:.0f}" for most in WANTED[name][: len(seconds) - 1]) if name in WANTED else ""
    print(f"{name:60s}" + "".join(f" {one:8.2f}" for one in seconds) + f" {wanted:>8s}", flush=True)


def _environment(column: str, folder: str) -> dict[str, str]:
    return {**os.environ, "NUMBA_CACHE_DIR": folder, "NORMLAB_OBJECTS": str(_OBJECTS) if column == "wheel" else ""}


def _measure(part: str, column: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cold", "--part", part, column]
    before = os.times()
    done = subprocess.run(command, env=_environment(column, folder), check=True, stdout=subprocess.PIPE, text=True)
    after = os.times()
    found: dict[str, Any] = json.loads(done.stdout)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    found["seconds"][f"{part}: processor time, of all processes"] = spent
    return found


def _demo(column: str, folder: str) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "normlab", *_DEMO, "--out", str(Path(out) / "study")]
        subprocess.run(command, env=_environment(column, folder), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _layers(cold: bool) -> dict[str, Any]:
    """Seconds to the first outputs and gradients of single layers."""
    watch = _Watch()
    import torch

    watch.lap("import torch")
    import normlab

    x = torch.randn(32, 16, 8, 8, requires_grad=True)
    rows = torch.randn(64, 16, requires_grad=True)
    layers = [
        ("a layer", normlab.make_norm("bn", 16, act="relu"), x),
        ("GroupNorm after it", normlab.make_norm("gn", 16), x),
        ("LayerNorm after it", normlab.layers.LayerNorm(16), rows),
    ]
    watch.lap("import normlab and its layers")
    kernels = _record_kernels() if cold else []
    for name, layer, source in layers:
        y = layer(source)
        watch.lap(f"first output of {name}")
        y.sum().backward()
        watch.lap(f"first gradient of {name}")
    return {"seconds": watch.laps, "kernels": kernels}


def _steps(cold: bool) -> dict[str, Any]:
    """Seconds of the first training step of a network, with one norm after the other."""
    watch = _Watch()
    import torch

    from normlab.bench.step import make_step

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)  # the first optimizer imports torch's compiler
    watch.lap("import torch, and its first optimizer")
    kernels = _record_kernels() if cold else []
    total = 0.0
    for norm in ("bn", "gn", "ln"):
        make_step("ours", norm, "channels_last", "cpu", "resnet14", 8, 32, "float32")()
        total += watch.lap(f"first training step of resnet14 with {norm}")
    return {"seconds": {**watch.laps, "first training step of resnet14 with bn, gn and ln": total}, "kernels": kernels}


_PARTS = {"layers": _layers, "steps": _steps}


class _Watch:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._started = time.perf_counter()

    def lap(self, name: str) -> float:
        now = time.perf_counter()
        self.laps[name], self._started = now - self._started, now
        return self.laps[name]


def _record_kernels() -> list[dict[str, Any]]:
    """A list that fills with the kernels that this process compiles from now on."""
    from numba.core import event
    from numba.core.ccallback import CFunc
    from numba.core.codegen import CPUCodeLibrary

    kernels: list[dict[str, Any]] = []
    spent = {"llvm": 0.0, "functions": 0.0}

    class Functions(event.Listener):
        def on_start(self, found: Any) -> None:
            spent["functions"] += 1

        def on_end(self, found: Any) -> None: ...

    def timed(method: Any) -> Any:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args)
            finally:
                spent["llvm"] += time.perf_counter() - started

        return call

    whole = CFunc.compile

    def compile_kernel(kernel: Any) -> None:
        before, started = dict(spent), time.perf_counter()
        whole(kernel)
        if not kernel.cache_hits:
            kernels.append(
                {
                    "name": kernel.__qualname__.split(".")[0],
                    "seconds": time.perf_counter() - started,
                    "functions": int(spent["functions"] - before["functions"]) + 1,
                    "llvm": spent["llvm"] - before["llvm"],
                }
            )

    event.register("numba:compile", Functions())
    for name in ("_optimize_functions", "_optimize_final_module", "_finalize_final_module"):
        setattr(CPUCodeLibrary, name, timed(getattr(CPUCodeLibrary, name)))
    CFunc.compile = compile_kernel
    return kernels


if __name__ == "__main__":
    main()
