"""What holds for every test."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from hypothesis import settings

# compiling a kernel takes seconds: no deadline for the example that does
settings.register_profile("normlab", deadline=None, print_blob=True)
settings.load_profile("normlab")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once, before the processes that share the tests start, and not in each of them."""
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        from normlab.kernels.stages import precompile

        import_module("normlab.kernels.cpu.planes")  # throws away what is stale, before the other process looks
        halves = "from normlab.kernels.stages import precompile; precompile(('float16', 'bfloat16'))"
        with subprocess.Popen([sys.executable, "-c", halves]) as other:
            precompile()
        assert other.returncode == 0
