"""What the compiler makes of the kernels, without a GPU: `python -m benchmarks.gpu.compiled [80 90 100]`.

For each kernel and compute capability: registers of a thread, bytes spilled to memory, and the widest load in bits.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from inspect import signature
from io import StringIO
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlab.kernels import positions, stages
from normlab.kernels.gpu import _kernels as plane_kernels
from normlab.kernels.gpu import _position_kernels as position_kernels
from normlab.kernels.gpu import planes as gpu_planes
from normlab.kernels.gpu import positions as gpu_positions
from normlab.norms import family

TARGETS = (80, 90, 100)
PROCESSORS = {80: 108, 90: 132, 100: 148}  # multiprocessors of an A100, an H100, a B200


class Compiled(NamedTuple):
    """A kernel, as the compiler left it."""

    kernel: str
    registers: int
    spilled: int
    widest: int


class _Compiling:
    """In the place of a kernel: compiles it for the arguments of a launch, and launches nothing."""

    def __init__(self, kernel: Any, found: list[Compiled]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def compile_for(*args: Any, **options: Any) -> None:
            with redirect_stdout(StringIO()) as log:
                made = self.kernel.warmup(*args, grid=grid, **options)
            if not log.getvalue():  # the same variant was compiled before
                return
            given = signature(self.kernel.fn).bind(*args).arguments
            steps = [step.lower() for step in ("MEASURE", "SOLVE", "APPLY") if given.get(step)]
            name = " ".join([self.kernel.fn.__name__, "+".join(steps)]).strip()
            loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", made.asm["ptx"])
            self.found.append(
                Compiled(
                    name,
                    max(map(int, re.findall(r"Used (\d+) registers", log.getvalue())), default=0),
                    sum(map(int, re.findall(r"(\d+) bytes spill stores", log.getvalue()))),
                    max((int(count or 1) * int(bits) for count, bits in loads), default=0),
                )
            )

        return compile_for


def inspect(capability: int, dtype: torch.dtype, last: bool) -> Iterator[tuple[str, Compiled]]:
    """(case, kernel) for a norm of either kind in its largest form, and for positions.

    One capability in a process: what is compiled already is not compiled again for another.
    """

    class Absent:
        """A driver of a device that is not there."""

        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))
        get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

    driver.set_active(Absent())
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    gpu_planes.processors = lambda device: PROCESSORS[capability]  # type: ignore[assignment]
    stages.planes_for = lambda x, entry=None: gpu_planes  # type: ignore[assignment,return-value,misc]
    positions.positions_for = lambda x: gpu_positions  # type: ignore[assignment,return-value]
    found: list[Compiled] = []
    for module, names in ((plane_kernels, _PLANES), (position_kernels, (*_PLANES, "learn", "total"))):
        for name in names:
            kernel = getattr(module, name)
            original = kernel.kernel if isinstance(kernel, _Compiling) else kernel
            setattr(module, name, _Compiling(original, found))
    x = torch.empty(32, 64, 56, 56, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    row = torch.empty(64)
    for norm in ("bn", "gn"):
        params = dict.fromkeys(family.describe(norm).parameters, row)
        update = (row, row, 0.1) if norm == "bn" else None
        _, cache = stages.forward(norm, x, params, act="relu", residual=x, update=update)
        stages.backward(x, cache)
        yield from ((f"{norm}, residual, relu", kernel) for kernel in found)
        found.clear()
    if not last:
        for title, shape in (
            ("rows of 1024", (8192, 1024)),
            ("rows of 16384", (512, 16384)),
            ("columns of 96", (32, 96, 3136)),
        ):
            v, weight = torch.empty(shape, dtype=dtype), torch.empty(shape[1])
            _, kept = positions.forward(v, weight, weight)
            positions.backward(v, v, weight, kept)
            yield from ((f"LayerNorm, {title}", kernel) for kernel in found)
            found.clear()


_PLANES = ("forward", "backward")


def main(words: list[str]) -> None:
    """Print the table; each target in a process of its own."""
    print("| target | case | kernel | registers | spilled, bytes | widest load, bits |")
    print("| --- | --- | --- | --: | --: | --: |", flush=True)
    for target in words or map(str, TARGETS):
        code = f"from benchmarks.gpu.compiled import lines; lines({int(target)})"
        subprocess.run([sys.executable, "-c", code], check=True)


def lines(capability: int) -> None:
    """Print the lines of one target."""
    for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
        form = f"{str(dtype).removeprefix('torch.')}, channels-{'last' if last else 'first'}"
        for case, found in inspect(capability, dtype, last):
            cells = f"sm_{capability}", f"{case}, {form}", *map(str, found)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
