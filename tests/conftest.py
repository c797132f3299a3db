"""What holds for every test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from normlab.kernels.runtime.system import COMPILE_ALONE
from tests.compiled import compile_kernels

if TYPE_CHECKING:
    from normlab.report.lab import Study

os.environ.update(COMPILE_ALONE)  # two processes share the tests as it is
# whoever runs them may have run `normlab build`: they go by what is there without it
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(tempfile.gettempdir()) / "normlab-tests-no-extensions"))

# compiling a kernel takes seconds: no deadline for the example that does
settings.register_profile("normlab", deadline=None, print_blob=True, max_examples=30)
settings.register_profile("thorough", settings.get_profile("normlab"), max_examples=200)  # `make test-all`
settings.load_profile("normlab")

pytest_plugins = ["tests.covering"]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once, before the processes that share the tests start, and not in each of them."""
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        compile_kernels()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 small pictures of two classes."""
    from tests.photographs import write_folder

    return write_folder(tmp_path_factory.mktemp("photographs") / "photos")


@pytest.fixture(scope="session")
def compared(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A comparison of two norms on that folder, finished. Tests only read it."""
    import normlab

    return normlab.compare(
        photographs, ["bn", "gn"], "resnet8:width=4", seeds=2, epochs=1, batch_size=8, lr=0.02, inline=True,
        out=tmp_path_factory.mktemp("compared") / "run",
    )  # fmt: skip
