"""Compile the CPU kernels that most tests use, in two processes: `python -m tests.compiled`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

HALVES = "from normlab.kernels.stages import precompile; precompile(('float16', 'bfloat16'))"


def compile_kernels() -> None:
    """Compile them once, before processes share the tests, and not in each of them; those on disk are only loaded."""
    from normlab.kernels.stages import precompile

    import_module("normlab.kernels.cpu.planes")  # throws away what is stale, before the other process looks
    with subprocess.Popen([sys.executable, "-c", HALVES]) as other:
        precompile()
    assert other.returncode == 0


if __name__ == "__main__":
    compile_kernels()
