"""Run by test_triton.py: compiles the kernels for an H100, which needs no device, and prints what came of it.

The interpreter runs Python; that the same text is valid Triton, and fits into registers, only the compiler knows.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from inspect import signature
from io import StringIO
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlab.kernels import positions, stages
from normlab.kernels.gpu import _kernels as kernels
from normlab.kernels.gpu import _position_kernels as position_kernels
from normlab.kernels.gpu import planes as triton_gpu
from normlab.kernels.gpu import positions as triton_positions
from normlab.norms import family as norms


class Absent:
    """A driver of a device that is not there."""

    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))


class Compiling:
    """In the place of a kernel: compiles it for the arguments of a launch, and launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def compile_for(*args: Any, **options: Any) -> None:
            with redirect_stdout(StringIO()) as log:
                self.kernel.warmup(*args, grid=grid, **options)
            spilled = "0 bytes spill stores" not in log.getvalue()
            given = signature(self.kernel.fn).bind(*args).arguments
            steps = "+".join(step for step in ("MEASURE", "SOLVE", "APPLY") if given.get(step))
            print(self.kernel.fn.__name__, steps, grid, "spills registers" if spilled else "compiled")

        return compile_for


def main() -> None:
    driver.set_active(Absent())
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    triton_gpu.processors = lambda device: 132  # type: ignore[assignment]
    kernels.forward, kernels.backward = Compiling(kernels.forward), Compiling(kernels.backward)
    stages.planes_for = lambda x, entry=None: triton_gpu  # type: ignore[assignment,return-value,misc]
    half, double = torch.bfloat16, torch.float64
    cases: list[tuple[str, tuple[int, ...], bool, torch.dtype, str | None]] = [
        ("bin", (32, 64, 56, 56), True, half, "relu"),
        ("gn", (256, 256, 7, 7), False, torch.float16, "gelu"),
        ("ln", (32, 64, 56, 56), False, double, "silu"),
    ]
    for norm, shape, last, dtype, act in (case for case in cases if case[0] in sys.argv):
        x = torch.empty(shape, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if last else x
        row = torch.empty(shape[1], dtype=half if dtype == half else torch.float32)
        params = dict.fromkeys(norms.describe(norm).parameters, row)
        update = (row, row, 0.1) if norm == "bin" else None
        residual = None if act is None else x
        _, cache = stages.forward(norm, x, params, act=act, residual=residual, update=update)
        stages.backward(x, cache)
    for name in ("forward", "backward", "learn", "total"):
        setattr(position_kernels, name, Compiling(getattr(position_kernels, name)))
    positions.positions_for = lambda x: triton_positions  # type: ignore[assignment,return-value]
    rows_and_columns = {"rows": ((8192, 768), torch.float32), "columns": ((32, 321, 196), half)}
    for shape, dtype in (rows_and_columns[name] for name in rows_and_columns if name in sys.argv):
        x, weight = torch.empty(shape, dtype=dtype), torch.empty(shape[1])
        _, kept = positions.forward(x, weight, weight)
        positions.backward(x, x, weight, kept)


if __name__ == "__main__":
    sys.exit(main())
