"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

# compiling a kernel takes seconds: no deadline for the example that does
settings.register_profile("normlab", deadline=None, print_blob=True)
settings.load_profile("normlab")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once, before the processes that share the tests start and each do it, or time out on it."""
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        from normlab.stages import precompile

        precompile()
